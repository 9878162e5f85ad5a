"""Turn a model into an fx graph: symbolic tracing first, torch.export where that fails."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import sys
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.utils._pytree import tree_unflatten

from fxquant.errors import CaptureError, ConfigError
from fxquant.ir.device import CPU, move
from fxquant.ir.frontend.model import inference_copy
from fxquant.ir.frontend.modules import MODULES

logger = logging.getLogger("fxquant")
_HERE = ("/torch/", "/fxquant/ir/", "<eval_with_key>", "<frozen")


class _Tracer(Tracer):
    """Leaves are the modules with a functional form in MODULES; all else is traced through."""

    record_stack_traces = True

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Inputs that were not given keep their defaults instead of becoming graph inputs."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i in range(self.inputs + 1, len(args)):  # args[0] is the module
            node = args[i].node
            if node.args and not str(node.target).startswith("*"):
                args[i] = node.args[0]
                self.graph.erase_node(node)
        return function, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES and "forward" not in vars(m)


def as_inputs(example_inputs: Any) -> tuple[Tensor, ...]:
    """Example inputs as a tuple of float32 tensors on the CPU, copies.

    Raises:
        ConfigError: Something else was given.
    """
    if not isinstance(example_inputs, Tensor | tuple | list):
        raise ConfigError(
            f"the example inputs are a {type(example_inputs).__name__}",
            where="example_inputs",
            remedy="pass a tensor or a tuple of the tensors that forward() takes",
        )
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for i, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"example input {i} is a {type(value).__name__}, not a tensor",
                where="example_inputs",
                remedy="pass a tensor or a tuple of the tensors that forward() takes",
            )
        if not value.dtype.is_floating_point:
            raise ConfigError(
                f"example input {i} has dtype {value.dtype}",
                where="example_inputs",
                why="network inputs are quantized from float32",
                remedy="convert it with .float()",
            )
        if value.numel() == 0:
            raise ConfigError(
                f"example input {i} of shape {tuple(value.shape)} is empty", where="example_inputs"
            )
    if not inputs:
        raise ConfigError("no example inputs were given", where="example_inputs")
    return tuple(x.detach().to(CPU, torch.float32, copy=True) for x in inputs)


def required_inputs(model: Any) -> int:
    """How many inputs forward() has no defaults for; 1 where it does not tell."""
    if isinstance(model, ExportedProgram):
        return len(model.graph_signature.user_inputs)
    if not isinstance(model, nn.Module):
        return 1  # capture says what is wrong with it
    known = inspect.signature(model.forward).parameters.values()
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is Parameter.empty for p in known))


def capture(model: Any, inputs: tuple[Tensor, ...]) -> GraphModule:
    """An fx graph of the model in inference mode, on the CPU; the caller's model is not changed.

    Args:
        model: `nn.Module`, fx `GraphModule` or `ExportedProgram`.
        inputs: Example inputs, on the CPU.

    Raises:
        CaptureError: Neither symbolic tracing nor torch.export can capture the model, it is not in
            float32, or it does more than its forward() says.
    """
    if not isinstance(model, nn.Module | ExportedProgram):
        raise CaptureError(
            f"cannot capture a {type(model).__name__}",
            remedy="pass an nn.Module, a torch.fx.GraphModule or an ExportedProgram",
        )
    _check_precision(model)
    if isinstance(model, ExportedProgram):
        return _unlift(model)
    model = inference_copy(model)
    try:
        tracer = _Tracer(len(inputs))
        graph = tracer.trace(model)
        assert isinstance(tracer.root, nn.Module)
        gm = move(GraphModule(tracer.root, graph), CPU)
        _check_inputs(graph, inputs)
        return gm
    except CaptureError:
        raise
    except Exception as error:  # fx raises whatever the model's code raises on proxies
        return _export(model, inputs, error)


def _check_precision(model: nn.Module | ExportedProgram) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and parameter.dtype != torch.float32:
            raise CaptureError(
                f"parameter {name} has dtype {parameter.dtype}",
                where=name,
                why="networks are quantized from float32",
                remedy="call model.float() first",
            )


def _check_inputs(graph: Graph, inputs: tuple[Tensor, ...]) -> None:
    names = [n.name for n in graph.nodes if n.op == "placeholder"]
    required = [n.name for n in graph.nodes if n.op == "placeholder" and not n.args]
    if not len(required) <= len(inputs) <= len(names):
        raise CaptureError(
            f"the model takes {len(names)} inputs ({', '.join(names)}), "
            f"{len(inputs)} example inputs were given",
            where="example_inputs",
            remedy="pass one tensor for each input of forward()",
        )


def _export(model: nn.Module, inputs: tuple[Tensor, ...], cause: Exception) -> GraphModule:
    """torch.export as the second try; its specialization is announced."""
    place = _user_line(cause)
    reason = f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
    printed = io.StringIO()
    try:
        with torch.no_grad(), contextlib.redirect_stderr(printed):
            program = torch.export.export(model, inputs)
    except Exception as error:
        graph = str(getattr(error, "partial_fx_graph", ""))  # it prints that: thousands of lines
        sys.stderr.write(printed.getvalue().replace(graph, "").lstrip())
        raise CaptureError(
            "the model cannot be captured as a graph",
            where=place or _user_line(error) or type(model).__name__,
            why=f"torch.fx: {reason}; torch.export: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
            remedy="remove control flow that depends on tensor values (use torch.where), or "
            "move it out of the module that is quantized",
        ) from error
    sys.stderr.write(printed.getvalue())
    logger.warning(
        "torch.fx could not trace %s (%s%s); captured with torch.export instead, which fixes "
        "shapes and branches to those of the example inputs",
        type(model).__name__,
        reason,
        f", at {place}" if place else "",
    )
    return _unlift(program)


def _user_line(error: BaseException) -> str:
    """`file:line` of the innermost frame in the user's code."""
    place, tb = "", error.__traceback__
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not any(part in name for part in _HERE):
            place = f"{name}:{tb.tb_lineno}"
        tb = tb.tb_next
    return place


def _unlift(program: ExportedProgram) -> GraphModule:
    """The program as a GraphModule with its parameters as attributes."""
    module = program.module(check_guards=False)
    if not isinstance(module, GraphModule):
        raise CaptureError("ExportedProgram.module() returned no GraphModule")
    spec = program.call_spec.out_spec
    if spec is not None:  # restore the nesting of the outputs, which export flattens
        output = next(n for n in module.graph.nodes if n.op == "output")
        output.args = (tree_unflatten(list(output.args[0]), spec),)
    return move(GraphModule(module, _plain(module.graph)), CPU)


def _plain(graph: Graph) -> Graph:
    """A copy of the graph without export's input and output flattening code."""
    plain = Graph()
    outputs = plain.graph_copy(graph, {})
    plain.output(outputs)
    return plain


def source_line(node: Node) -> str:
    """`file:line` of the model's code that made the node, from the recorded stack trace."""
    trace = node.meta.get("stack_trace") or node.stack_trace or ""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(f, n) for f, n in places if not any(part in f for part in _HERE)]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""
