"""Building graphs: the only place that creates nodes and registers tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fxquant.ir.meta import provenance, set_value


class GraphBuilder:
    """A new graph and the tensors its get_attr nodes name; shapes are inferred as nodes are made.

    Shapes come from running the operator on meta tensors, so no arithmetic happens.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.root = nn.Module()
        self._attributes: dict[tuple[int, str], Node] = {}
        self._kept: list[Tensor] = []  # keeps ids in _attributes alive

    def placeholder(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Node:
        """A graph input."""
        node = self.graph.placeholder(name)
        set_value(node, shape, dtype)
        return node

    def tensor(self, value: Tensor, name: str) -> Node:
        """A get_attr node; the same tensor under the same name is registered once."""
        known = self._attributes.get((id(value), name))
        if known is not None:
            return known
        attribute = register(self.root, name, value)
        with self.graph.inserting_before(self._after_leaves()):
            node = self.graph.get_attr(attribute)
        set_value(node, tuple(value.shape), value.dtype)
        self._attributes[id(value), name] = node
        self._kept.append(value)
        return node

    def _after_leaves(self) -> Node | None:
        """First computing node: tensors stay in front, so that every node may use them."""
        return next((n for n in self.graph.nodes if n.op not in ("placeholder", "get_attr")), None)

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Node:
        """A call_function node with inferred shape (of its first tensor result)."""
        kwargs = dict(kwargs or {})
        node = self.graph.create_node("call_function", function, args, kwargs, name)
        infer_shape(node)
        return node

    def finish(self, outputs: Any) -> GraphModule:
        """Set the output and make the module."""
        self.graph.output(outputs)
        return finish(self.root, self.graph)


def invoke(node: Node, args: Any, kwargs: Any) -> Any:
    """What a call_function or call_method node computes from operands."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def infer_shape(node: Node) -> None:
    """Record shape and dtype of a call_function or call_method node from those of its operands."""

    def meta(operand: Node) -> Tensor:
        return torch.empty(operand.meta["shape"], dtype=operand.meta["dtype"], device="meta")

    with torch.no_grad():
        result = invoke(node, map_arg(node.args, meta), map_arg(node.kwargs, meta))
    if isinstance(result, tuple | list):
        result = result[0]
    if isinstance(result, Tensor):
        set_value(node, tuple(result.shape), result.dtype)


def renamed(gm: GraphModule) -> GraphModule:
    """A copy whose nodes bear the names of the modules they come from, without suffixes."""
    graph, env = Graph(), {}
    for node in gm.graph.nodes:
        args = map_arg(node.args, env.__getitem__)
        kwargs = map_arg(node.kwargs, env.__getitem__)
        path = provenance(node).name if node.op == "call_function" else ""
        name = path.replace(".", "_") if path else re.sub(r"_\d+$", "", node.name)
        keep = node.op in ("placeholder", "output", "get_attr")
        new = graph.create_node(node.op, node.target, args, kwargs, node.name if keep else name)
        new.meta.update(node.meta)
        env[node] = new
    return finish(gm, graph)


def finish(root: nn.Module, graph: Graph) -> GraphModule:
    """Drop dead nodes, check the graph and make an inference-mode GraphModule."""
    graph.eliminate_dead_code()
    graph.lint()
    gm = GraphModule(root, graph)
    gm.recompile()
    return gm.eval()


def register(root: nn.Module, name: str, value: Tensor) -> str:
    """Register a tensor under a free name made from `name`; returns that name."""
    base = re.sub(r"\W", "_", name) or "tensor"
    base = f"t_{base}" if base[0].isdigit() else base
    candidate, count = base, 0
    while hasattr(root, candidate):
        count += 1
        candidate = f"{base}_{count}"
    if value.dtype.is_floating_point:
        parameter = nn.Parameter(value.detach(), requires_grad=False)
        root.register_parameter(candidate, parameter)
    else:
        root.register_buffer(candidate, value.detach())
    return candidate
