"""Typed access to what this project keeps in `node.meta`. Nothing else touches these keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fxquant.errors import StageError
from fxquant.numerics.types import QParams, QuantSpec
from fxquant.ops import OPS, Grid, OpDef


@dataclass(frozen=True, slots=True)
class TensorQuant:
    """Quantization of one value: the intent, and after calibration the result.

    Attributes:
        spec: Intent.
        qparams: Result, None until calibrated.
        origin: Why it is so: the config rule, or the value whose grid it shares.
    """

    spec: QuantSpec
    qparams: QParams | None
    origin: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a node comes from.

    Attributes:
        modules: Module paths it was fused from, e.g. `("layer1.0.conv1", "layer1.0.bn1")`.
        kinds: Names of the module types or functions, same order.
        source: `file:line` of the model's code, or "".
        types: The module types themselves, where the model had modules; files do not keep them.
    """

    modules: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    source: str = ""
    types: tuple[type[nn.Module], ...] = ()

    def __add__(self, other: Provenance) -> Provenance:
        return Provenance(
            self.modules + tuple(m for m in other.modules if m not in self.modules),
            self.kinds + other.kinds,
            self.source or other.source,
            self.types + other.types,
        )

    @property
    def name(self) -> str:
        """The module path people know the node by."""
        return self.modules[0] if self.modules else ""


def shape_of(node: Node) -> tuple[int, ...]:
    """Traced shape, batch included."""
    return node.meta["shape"]


def dtype_of(node: Node) -> torch.dtype:
    """Traced dtype."""
    return node.meta["dtype"]


def set_value(node: Node, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Record the traced shape and dtype."""
    node.meta["shape"], node.meta["dtype"] = tuple(shape), dtype


def provenance(node: Node) -> Provenance:
    """Where the node comes from."""
    return node.meta.get("provenance", Provenance())


def set_provenance(node: Node, value: Provenance) -> None:
    """Record where the node comes from."""
    node.meta["provenance"] = value


def quant(node: Node) -> TensorQuant | None:
    """The value's quantization, None if it stays in float."""
    return node.meta.get("quant")


def set_quant(node: Node, value: TensorQuant | None) -> None:
    """Set or drop the value's quantization."""
    if value is None:
        node.meta.pop("quant", None)
    else:
        node.meta["quant"] = value


def qparams(node: Node) -> QParams:
    """The value's grid.

    Raises:
        StageError: The value has none (yet).
    """
    value = quant(node)
    if value is None or value.qparams is None:
        raise StageError(
            f"value {node.name} has no quantization parameters",
            why="it stays in float or calibration has not run",
            remedy="call fxquant.calibrate first",
        )
    return value.qparams


def float_reason(node: Node) -> str | None:
    """Why the operator stays in float, None if it runs on integers."""
    return node.meta.get("float_reason")


def set_float_reason(node: Node, reason: str | None) -> None:
    """Mark the operator as float with its reason, or as integer."""
    if reason is None:
        node.meta.pop("float_reason", None)
    else:
        node.meta["float_reason"] = reason


def delivers_float(node: Node) -> bool:
    """Whether an integer operator's accumulators are turned into floats directly."""
    return node.meta.get("delivers_float", False)


def opdef(node: Node) -> OpDef | None:
    """The node's operator, None if the dialect has no such operator."""
    function: Any = node.target
    return OPS.get(function) if node.op == "call_function" else None


def runs_on_integers(node: Node) -> bool:
    """Whether an annotated node is an operator on integer codes."""
    return opdef(node) is not None and float_reason(node) is None


def is_weighted(node: Node) -> bool:
    """Whether a node is an operator with a weight, on integers or not."""
    definition = opdef(node)
    return definition is not None and definition.weighted


def is_layer(node: Node) -> bool:
    """Whether a node is a weighted operator on integers."""
    return is_weighted(node) and float_reason(node) is None


def summands(node: Node) -> list[Node]:
    """The operands an integer operator adds on the grid of its result."""
    definition = opdef(node)
    if definition is None or float_reason(node) is not None:
        return []
    bound = definition.bind(node)
    return [bound[name] for name in definition.summed if name in bound]


def shares_grid(node: Node) -> bool:
    """Whether a node is an operator that moves codes: its result lies on its operand's grid."""
    definition = opdef(node)
    return definition is not None and definition.grid is Grid.SHARED and float_reason(node) is None


def grid_owner(node: Node) -> Node:
    """The node whose grid a quantized value lies on."""
    while shares_grid(node):
        node = node.all_input_nodes[0]
    return node


def static(node: Node, name: str) -> Any:
    """A static argument of a dialect node."""
    return node.kwargs[name]


def term(node: Node) -> float:
    """Largest magnitude a layer's own result had before its residual was added; 0 if unknown."""
    return node.meta.get("term", 0.0)


def set_term(node: Node, value: float) -> None:
    """Record the largest magnitude of a layer's own term of a sum."""
    node.meta["term"] = value


def channel_factors(node: Node) -> torch.Tensor | None:
    """What equalization divided the value by, broadcasts over it; None if it did not."""
    return node.meta.get("channel_factors")


def set_channel_factors(node: Node, factors: torch.Tensor) -> None:
    """Record what the value was divided by."""
    node.meta["channel_factors"] = factors


def set_delivers_float(node: Node) -> None:
    """Mark an integer operator as one whose accumulators become floats."""
    node.meta["delivers_float"] = True


def tensor_of(gm: nn.Module, node: Node) -> torch.Tensor:
    """The tensor behind a get_attr node of a module's graph."""
    value: object = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value


def move(node: Node, device: torch.device) -> None:
    """Take the tensors of the metadata to a device."""
    value, factors = quant(node), channel_factors(node)
    if value is not None and value.qparams is not None:
        set_quant(node, replace(value, qparams=value.qparams.to(device)))
    if factors is not None:
        set_channel_factors(node, factors.to(device))


def copy_meta(source: Node, destination: Node) -> None:
    """Carry all metadata over to the node that replaces `source`."""
    destination.meta.update(source.meta)


def place(node: Node) -> str:
    """How errors name a node: module path, node name and source line."""
    origin = provenance(node)
    parts = [p for p in (origin.name, f"node {node.name}", origin.source) if p]
    return ", ".join(parts)
