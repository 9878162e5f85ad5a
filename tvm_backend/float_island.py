"""Float islands: exported by torch, imported and compiled by Relax."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch

from fxquant.errors import UnsupportedError
from tvm_backend.program import Island, Program
from tvm_backend.tvm_api import from_exported_program, relax, tvm

_X = relax.transform
_PASSES = (
    _X.LegalizeOps(),
    _X.AnnotateTIROpPattern(),
    _X.FoldConstant(),
    _X.FuseOps(),
    _X.FuseTIR(),
)


def add_island(builder: Any, island: Island, program: Program) -> Any:
    """Compile an island into the module under construction; returns its global variable.

    Raises:
        UnsupportedError: An operator cannot be exported or imported.
    """
    module = _import(island, program)
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(list(_PASSES))(module)
    return _merge(builder, module, island.name)


def _import(island: Island, program: Program) -> Any:
    examples = tuple(
        torch.zeros(program.values[n].shape, dtype=getattr(torch, program.values[n].storage.dtype))
        for n in island.inputs
    )
    try:
        with warnings.catch_warnings():  # torch's exporter warns about its own internals
            warnings.simplefilter("ignore")
            exported = torch.export.export(island.module.eval(), examples)
            return from_exported_program(exported)  # decomposes by itself
    except Exception as error:  # the importers raise anything from AssertionError to KeyError
        operators = sorted({_name(node) for node in island.module.graph.nodes if _name(node)})
        raise UnsupportedError(
            f"float island {island.name} cannot be compiled",
            where=f"operators of the island: {', '.join(operators)}",
            why=_reason(error),
            remedy="quantize the operator, replace it, or run the network with torch",
        ) from error


def _name(node: torch.fx.Node) -> str:
    if node.op not in ("call_function", "call_method", "call_module"):
        return ""
    return getattr(node.target, "__name__", str(node.target))


def _reason(error: Exception) -> str:
    text = str(error).strip()
    unsupported = re.search(r"[Uu]nsupported.*", text)
    return unsupported.group(0) if unsupported else f"{type(error).__name__}: {text[:500]}"


def _merge(builder: Any, module: Any, name: str) -> Any:
    """Add all functions of an island's module under names of its own."""
    renamed: dict[Any, Any] = {}
    functions = {variable.name_hint: (variable, f) for variable, f in module.functions.items()}
    main, body = functions.pop("main")
    for hint, (variable, function) in functions.items():
        renamed[variable] = builder.add_func(
            function.with_attr("global_symbol", f"{name}_{hint}"), f"{name}_{hint}"
        )
    del main

    @relax.expr_functor.mutator
    class Rename(relax.PyExprMutator):
        """Point calls at the functions' new names."""

        def visit_global_var_(self, op: Any) -> Any:
            return renamed.get(op, op)

    body = Rename(builder.get()).visit_expr(body)
    body = body.with_attr("global_symbol", name)
    return builder.add_func(body, name)
