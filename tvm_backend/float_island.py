"""Float islands: exported by torch, imported and compiled by Relax; equal ones once.

The blocks of a transformer are alike but for their weights, so weights of at most one axis (those
of normalizations, biases) become arguments of the island's function. Larger ones stay inside,
where what only depends on them is computed at compile time.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fxquant.errors import UnsupportedError
from tvm_backend.graph_view import tensor_of
from tvm_backend.island_check import difference
from tvm_backend.pipeline import IMPORT
from tvm_backend.program import Island, Program
from tvm_backend.quiet import quiet
from tvm_backend.tvm_api import from_exported_program, relax, tvm


class Islands:
    """Functions of the islands of a module under construction.

    Args:
        builder: Builds the module.
        program: The network.
    """

    def __init__(self, builder: Any, program: Program) -> None:
        self._builder, self._program = builder, program
        self._made: dict[str, Any] = {}

    def add(self, island: Island) -> tuple[Any, list[np.ndarray]]:
        """Compile an island, unless an equal one is there.

        Returns:
            The global variable of its function, and constants to pass after the inputs.

        Raises:
            UnsupportedError: TVM has no code for an operator, or not one that does what torch does.
        """
        name = symbol(island, self._program)
        module, constants = lift_constants(island.module)
        if name not in self._made:
            imported = _checked(island, module, _examples(island, self._program), constants)
            self._made[name] = _merge(self._builder, imported, name)
        return self._made[name], [c.numpy() for c in constants]


def symbol(island: Island, program: Program) -> str:
    """Name of an island's function; islands that compute the same have one."""
    module, constants = lift_constants(island.module)
    return f"float_{structure(module, [*_examples(island, program), *constants])}"


def _examples(island: Island, program: Program) -> list[Tensor]:
    values = [program.values[n] for n in island.inputs]
    return [torch.zeros(v.shape, dtype=getattr(torch, v.storage.dtype)) for v in values]


def lift_constants(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """A module that takes its small float constants as inputs after its own, and their values."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    constants: list[Tensor] = []
    nodes = list(module.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    for node in nodes:
        if node.op == "get_attr" and _small(tensor_of(module, node)):
            constants.append(tensor_of(module, node))
            copies[node] = graph.placeholder(f"constant{len(constants)}")
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(module, graph), constants


def _small(constant: Tensor) -> bool:
    return constant.ndim <= 1 and constant.dtype == torch.float32


def structure(module: GraphModule, inputs: list[Tensor]) -> str:
    """A digest, equal for modules that compute the same function of such inputs."""
    number = {node: i for i, node in enumerate(module.graph.nodes)}
    modules = dict(module.named_modules())
    digest = hashlib.sha256(repr([(tuple(x.shape), x.dtype) for x in inputs]).encode())
    for node in module.graph.nodes:
        what = ""
        if node.op == "call_function":
            what = f"{node.target.__module__}.{node.target.__qualname__}"
        elif node.op == "call_method":
            what = str(node.target)
        elif node.op == "call_module":
            what = str(id(modules[str(node.target)]))
        elif node.op == "get_attr":
            tensor = tensor_of(module, node)
            what = f"{tuple(tensor.shape)}, {tensor.dtype}"
            digest.update(tensor.contiguous().numpy().tobytes())
        arguments = map_arg((node.args, node.kwargs), lambda n: _Operand(number[n]))  # type: ignore[arg-type]
        digest.update(f"{node.op} {what} {arguments}\n".encode())
    return digest.hexdigest()[:10]


class _Operand:
    """Stands for a node among the arguments of another."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"%{self.number}"


def _checked(
    island: Island, module: GraphModule, examples: list[Tensor], constants: list[Tensor]
) -> Any:
    """The island as a Relax module that computes what torch does."""
    try:
        with quiet():
            imported = _import(module, (*examples, *constants))
            why = difference(module, imported, examples, constants)
    except Exception as error:  # TVM raises anything from AssertionError to KeyError
        raise _refused(island, _reason(error)) from error
    if why:
        raise _refused(island, why)
    return imported


def _import(module: GraphModule, inputs: tuple[Tensor, ...]) -> Any:
    with warnings.catch_warnings():  # torch's exporter warns about its own internals
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), inputs)
        imported = from_exported_program(exported)  # decomposes by itself
    with tvm.target.Target("llvm"), tvm.transform.PassContext(opt_level=3):  # any processor
        return IMPORT(imported)


def _refused(island: Island, why: str) -> UnsupportedError:
    operators = sorted({_name(node) for node in island.module.graph.nodes if _name(node)})
    return UnsupportedError(
        f"float island {island.name} cannot be compiled",
        where=f"operators of the island: {', '.join(operators)}",
        why=why,
        remedy="quantize the operator, replace it, or run the network with torch",
    )


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
