"""Channel classes: which channels of which values can be scaled, and only together.

A channel may be divided by any s > 0 if the layer that makes it can take the factor in (a row of
its weight) and every layer that reads it undoes it (a column). Operators in between carry the
factor along: they move channels, pool them, or add two of the same factor. So the channels of all
values fall into classes with one common factor each. A class with a member that cannot be scaled
(an input or result of the network, an operand of a function that is not positively homogeneous)
keeps the factor 1.

Found by running the graph on labels instead of numbers. A layer gives each output channel a new
label, operators that move values move labels, a sum unites the labels of its operands. Residual
sums, concatenations, channel shuffles and flattened maps need no rules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ops import arithmetic, elementwise, pool, shape
from fxquant.ops.clamp import Clamp
from fxquant.ops.conv import linear

_ZERO = -1  # label of a zero: it stays one, whatever the factor

# f(x s) = f(x) s for s > 0, on each channel alone
_HOMOGENEOUS = (
    pool.max_pool2d,
    pool.avg_pool2d,
    pool.resize_linear2d,
    elementwise.clamp,
    arithmetic.requantize,
    elementwise.prelu,
    F.leaky_relu,
    torch.abs,
)
_MOVES = (
    shape.reshape,
    shape.permute,
    shape.slice_axis,
    shape.channel_shuffle,
    shape.gather2d,
    shape.pad,
)


@dataclass(frozen=True, slots=True, eq=False)
class LayerChannels:
    """Classes at a weighted operator. Class 0 is that of all channels that keep the factor 1.

    Attributes:
        node: The operator.
        inputs: Class of every input channel, int64 `[I]`.
        outputs: Class of every output channel, int64 `[O]`.
    """

    node: Node
    inputs: Tensor
    outputs: Tensor

    @property
    def source(self) -> Node:
        """The value it reads."""
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def weight(self) -> Node:
        """Its weight."""
        return self.node.args[1]  # type: ignore[return-value]

    @property
    def axis(self) -> int:
        """Channel axis of input and result."""
        return -1 if self.node.target is linear else 1

    def scale_columns(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Multiply what reads input channel c by `factors[c]`.

        Args:
            weight: `[O, I/groups, ...]`.
            factors: `[I]`.
        """
        grouped = self._grouped(weight)  # [g, O/g, I/g, K]
        return (grouped * factors.reshape(len(grouped), 1, -1, 1)).reshape(weight.shape)

    def largest_columns(self, weight: Tensor) -> Tensor:
        """Largest element that reads each input channel, `[I]`; `weight` as in scale_columns."""
        return self._grouped(weight).amax((1, 3)).flatten()

    def _grouped(self, weight: Tensor) -> Tensor:
        groups: Any = self.node.kwargs.get("groups", 1)
        return weight.reshape(int(groups), len(weight) // int(groups), weight.shape[1], -1)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelClasses:
    """What `channel_classes` found.

    Attributes:
        count: Number of classes, class 0 included.
        layers: The weighted operators that run on integers, in execution order.
        values: By name of a value with channels that can be scaled, the classes of its elements:
            int64, broadcasts over the value, batch axis 1.
        clamps: Bounds of those of them that are clamped elsewhere than at 0.
        refusals: By name of a layer none of whose output channels can be scaled, why.
    """

    count: int
    layers: tuple[LayerChannels, ...]
    values: dict[str, Tensor]
    clamps: dict[str, Clamp]
    refusals: dict[str, str]


def channel_classes(gm: GraphModule) -> ChannelClasses:
    """The channel classes of an ANNOTATED graph."""
    return _Labelling(gm).run()


def along(compact: Tensor, axis: int, channels: int) -> Tensor:
    """A tensor that changes along one axis only, as a vector over that axis, `[channels]`."""
    last = compact.movedim(axis, -1)
    return last.reshape(-1, last.shape[-1])[0].expand(channels)


class _Labelling:
    """Labels of every value, and a union-find forest over the labels."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.labels: dict[Node, Tensor] = {}
        self.layers: list[LayerChannels] = []
        self.parents: list[int] = [0]  # label 0: no factor
        self.reasons: dict[int, str] = {0: "it is added to a value that cannot be scaled"}

    def run(self) -> ChannelClasses:
        for node in self.gm.graph.nodes:
            if node.op == "output":
                for value in node.all_input_nodes:
                    self._fix(self.labels[value], "it is a result of the network")
            elif node.op in ("placeholder", "get_attr"):
                self.labels[node] = _none(node)
            else:
                labels = _compact(self._operator(node))
                if labels.ndim and len(labels) > 1:
                    self._fix(labels, f"{node.name} moves channels into the batch")
                    labels = _none(node)
                self.labels[node] = labels
        return self._result()

    def _result(self) -> ChannelClasses:
        roots = [self._root(label) for label in range(len(self.parents))]
        free = sorted(set(roots) - set(self.reasons))
        numbers = {root: number for number, root in enumerate(free, 1)}
        classes = torch.tensor([numbers.get(root, 0) for root in roots])
        values, clamps, refusals = {}, {}, {}
        for node, labels in self.labels.items():
            known = classes[labels.clamp(min=0)]
            if bool(known.any()):
                values[node.name] = known
                low, high = _clamp(node)
                if low or high is not None:
                    clamps[node.name] = (low, high)
        layers = []
        for layer in self.layers:
            inputs, outputs = classes[layer.inputs.clamp(min=0)], classes[layer.outputs]
            layers.append(LayerChannels(layer.node, inputs, outputs))
            if not bool(outputs.any()):
                refusals[layer.node.name] = self.reasons[self._root(int(layer.outputs[0]))]
        return ChannelClasses(len(free) + 1, tuple(layers), values, clamps, refusals)

    def _root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = label = self.parents[self.parents[label]]
        return label

    def _fix(self, labels: Tensor, reason: str) -> None:
        for label in labels.unique().tolist():
            if label > 0:
                self.reasons.setdefault(self._root(label), reason)

    def _unite(self, a: Tensor, b: Tensor) -> None:
        """Labels at the same places get the same factor."""
        for pair in torch.stack([a.flatten(), b.flatten()]).unique(dim=1).T.tolist():
            if _ZERO in pair:
                continue
            low, high = sorted(self._root(label) for label in pair)
            if low != high:
                self.parents[high] = low
                if high in self.reasons:
                    self.reasons.setdefault(low, self.reasons.pop(high))

    def _operator(self, node: Node) -> Tensor:
        """Labels of an operator's result."""
        definition = meta.opdef(node)
        if definition is None or not meta.runs_on_integers(node):
            return self._refuse(node, f"it is read by {node.name}, which stays in float")
        bound = definition.bind(node)
        if definition.weighted:
            return self._layer(node, bound)
        if _off_zero(node):
            return self._refuse(node, f"it is clamped by {node.name}, which leaves no room above 0")
        if node.target is arithmetic.add:
            return self._sum(self.labels[bound["a"]], self.labels[bound["b"]])
        if node.target is arithmetic.mul:
            return self._product(node, self.labels[bound["a"]], self.labels[bound["b"]])
        if node.target is arithmetic.concat:
            return torch.cat([self._full(n) for n in bound["tensors"]], bound["axis"]).long()
        x = bound["x"]
        if node.target in _MOVES and bound.get("value", 0) == 0:
            zero = {"value": _ZERO} if node.target is shape.pad else {}
            return definition.function(self._full(x), **{**node.kwargs, **zero}).long()
        if node.target in _HOMOGENEOUS and _only_along(self.labels[x], 1):
            return self.labels[x]
        name = getattr(node.target, "__name__", str(node.target))
        return self._refuse(node, f"it is read by {node.name} ({name}), which depends on its scale")

    def _refuse(self, node: Node, reason: str) -> Tensor:
        for value in node.all_input_nodes:
            self._fix(self.labels[value], reason)
        return _none(node)

    def _layer(self, node: Node, bound: dict[str, Any]) -> Tensor:
        x, rank = bound["x"], len(meta.shape_of(node))
        axis = rank - 1 if node.target is linear else 1
        if not _only_along(self.labels[x], axis):
            self._fix(self.labels[x], f"{node.name} reads several of its channels as one")
        inputs = along(self.labels[x], axis, meta.shape_of(x)[axis])
        first, count = len(self.parents), meta.shape_of(node)[axis]
        outputs = torch.arange(first, first + count)
        self.parents += outputs.tolist()
        if any(self._is_shared(bound[name]) for name in ("weight", "bias") if name in bound):
            for labels in (inputs, outputs):
                self._fix(labels, f"{node.name} shares its parameters with another operator")
        if _off_zero(node):
            self._fix(outputs, "its clamp leaves no room above 0")
        self.layers.append(LayerChannels(node, inputs, outputs))
        own = outputs.reshape([-1 if i == axis else 1 for i in range(rank)])
        return self._sum(own, self.labels[bound["residual"]]) if "residual" in bound else own

    def _is_shared(self, parameter: Node) -> bool:
        attributes = [n for n in self.gm.graph.nodes if n.op == "get_attr"]
        return sum(len(n.users) for n in attributes if n.target == parameter.target) > 1

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        self._unite(a, b)
        return torch.where(a == _ZERO, b, a)

    def _product(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        """A factor passes through a product with something that has none (a gate)."""
        for one, other in ((a, b), (b, a)):
            if not bool(other.any()):
                return torch.broadcast_tensors(one, other)[0]
        return self._refuse(node, f"{node.name} multiplies two values that can be scaled")

    def _full(self, node: Node) -> Tensor:
        """Labels in the shape of the value; float, as operators expect it."""
        return self.labels[node].expand(meta.shape_of(node)).double()


def _none(node: Node) -> Tensor:
    """Labels of a value without factors."""
    return torch.zeros([1] * len(node.meta.get("shape", ())), dtype=torch.int64)


def _clamp(node: Node) -> Clamp:
    clamp: Any = node.kwargs.get("clamp")
    return clamp or (None, None)


def _off_zero(node: Node) -> bool:
    """Whether a clamp excludes 0 or all above it: then no factor but 1 keeps its bounds."""
    low, high = _clamp(node)
    return (low is not None and low > 0) or (high is not None and high <= 0)


def _compact(labels: Tensor) -> Tensor:
    """Drop every axis along which the labels do not change, but for zeros."""
    for axis in range(labels.ndim):
        largest = labels.amax(axis, keepdim=True)
        if bool(((labels == largest) | (labels == _ZERO)).all()):
            labels = largest
    return labels


def _only_along(labels: Tensor, axis: int) -> bool:
    """Whether compact labels change along no other axis."""
    return all(n == 1 for i, n in enumerate(labels.shape) if i != axis)
