"""Reading an INTEGER graph: shapes, parameter tensors, bound arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from fxquant.errors import StageError


class _Recorder(Interpreter):
    """Runs a graph and records the shape and dtype of every tensor."""

    def run_node(self, n: Node) -> Any:
        """Run and record one node."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"], n.meta["dtype"] = tuple(result.shape), result.dtype
        return result


def record_shapes(graph_module: GraphModule, *inputs: Tensor) -> GraphModule:
    """Write `meta["shape"]` and `meta["dtype"]` of every node by running the graph.

    Args:
        graph_module: The graph, changed in place.
        *inputs: Example inputs.

    Returns:
        The graph.
    """
    with torch.no_grad():
        _Recorder(graph_module).run(*inputs)
    return graph_module


def complete_shapes(graph_module: GraphModule) -> None:
    """Record missing shapes by a run on zeros.

    Raises:
        StageError: A placeholder has no shape.
    """
    nodes = [n for n in graph_module.graph.nodes if n.op not in ("output", "get_attr")]
    if all("shape" in n.meta for n in nodes):
        return
    inputs = []
    for node in nodes:
        if node.op == "placeholder":
            if "shape" not in node.meta:
                raise StageError(
                    f"input {node.name} has no shape",
                    why='the backend compiles static shapes and found no meta["shape"]',
                    remedy="use the graph made by fxquant.convert, or record_shapes",
                )
            dtype = node.meta.get("dtype", torch.float32)
            inputs.append(torch.zeros(node.meta["shape"], dtype=dtype))
    record_shapes(graph_module, *inputs)


def shape_of(node: Node) -> tuple[int, ...]:
    """Traced shape."""
    return tuple(int(d) for d in node.meta["shape"])


def dtype_of(node: Node) -> torch.dtype | None:
    """Traced dtype, None for what is no tensor."""
    return node.meta.get("dtype")


def tensor_of(graph_module: GraphModule, node: Node) -> Tensor:
    """The tensor a get_attr node names."""
    return attrgetter(str(node.target))(graph_module).detach()


def bind(node: Node) -> dict[str, Any]:
    """Arguments of a call by parameter name, defaults included."""
    assert isinstance(node.target, Callable)
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def nodes_in(argument: Any) -> Iterator[Node]:
    """All nodes inside an argument, in order, repetitions included."""
    found: list[Node] = []
    map_arg(argument, lambda n: found.append(n) or n)
    yield from found


def fold_constants(graph_module: GraphModule) -> dict[Node, Tensor]:
    """Values that do not depend on any input: parameters, and what is computed from them."""
    known: dict[Node, Tensor] = {}
    modules = dict(graph_module.named_modules())
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            known[node] = tensor_of(graph_module, node)
        elif node.op in ("call_function", "call_module"):
            inputs = list(nodes_in((node.args, node.kwargs)))
            if not inputs or any(n not in known for n in inputs):
                continue
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            function = modules[str(node.target)] if node.op == "call_module" else node.target
            with torch.no_grad():
                result = function(*args, **kwargs)  # type: ignore[operator]
            if isinstance(result, Tensor):
                known[node] = result
    return known
