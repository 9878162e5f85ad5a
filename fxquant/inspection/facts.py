"""What the report says about each value: plain records gathered from the calibrated graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from fxquant.inspection.histogram import Histogram, code_counts
from fxquant.ir import meta
from fxquant.model import Quantized
from fxquant.numerics.types import IntType
from fxquant.numerics.width import width_of
from fxquant.passes.annotate import is_border


@dataclass(frozen=True, slots=True)
class Weight:
    """Integer weight of an operator.

    Attributes:
        codes: int8 `[O, ...]`.
        bits: Width of the codes.
        scales: Smallest and largest scale of a channel.
        channel_bytes: Size of bias, multiplier and shift of a channel.
    """

    codes: Tensor
    bits: int
    scales: tuple[float, float]
    channel_bytes: int

    @property
    def float_bytes(self) -> int:
        """Size in float32, with bias."""
        return 4 * (self.codes.numel() + self.codes.shape[0])

    @property
    def integer_bytes(self) -> int:
        """Size of the packed codes and the integers of each channel."""
        return -(-self.codes.numel() * self.bits // 8) + self.channel_bytes * self.codes.shape[0]

    def histogram(self, original: Tensor | None = None) -> Histogram:
        """Of the codes, and of the float weight if given in units of the codes `[O, ...]`."""
        dtype = IntType(self.bits, signed=True, narrow=True)
        before = () if original is None else tuple(code_counts(original, dtype).tolist())
        after = tuple(code_counts(self.codes, dtype).tolist())
        return Histogram(before, after, (float(dtype.qmin), float(dtype.qmax)))


@dataclass(frozen=True, slots=True, eq=False)
class NodeFacts:
    """One row of the report's table.

    Attributes:
        node: Node name.
        module: Module path it comes from.
        operator: Operator name.
        shape: Shape of the result, batch included.
        weight: Integer weight, if it has one.
        bits: Width of the result's codes; None if it is float.
        grid: The result's grid in words: its type, and the numbers.
        scale: Scale of the grid; None if the result is float.
        zero_point: Its zero point.
        owner: Name of the value whose grid the result lies on: its own, unless values only move.
        float_reason: Why it stays in float, or "".
        note: What happened to it during quantization.
        sources: Names of the values it reads.
    """

    node: str
    module: str
    operator: str
    shape: tuple[int, ...]
    weight: Weight | None
    bits: int | None
    grid: tuple[str, str]
    scale: float | None
    zero_point: int
    owner: str
    float_reason: str
    note: str
    sources: tuple[str, ...]

    @property
    def island(self) -> bool:
        """Whether it stays in float for a reason of its own."""
        return bool(self.float_reason) and not is_border(self.float_reason)


def node_facts(quantized: Quantized) -> tuple[NodeFacts, ...]:
    """Facts of the inputs and operators, in execution order."""
    nodes = quantized.calibrated.graph.nodes
    return tuple(_facts(quantized, node) for node in nodes if node.op not in ("get_attr", "output"))


def _facts(quantized: Quantized, node: Node) -> NodeFacts:
    reason = meta.float_reason(node) or ""
    bits, grid, scale, zero_point = None, ("float32", ""), None, 0
    if meta.delivers_float(node):
        grid = ("float32", "from accumulators")
    elif meta.quant(node) is not None:
        qparams = meta.qparams(node)
        bits, scale, zero_point = (
            qparams.spec.dtype.bits, float(qparams.scale), int(qparams.zero_point)
        )  # fmt: skip
        kind, _, numbers = str(qparams).partition(" ")
        grid = (kind, numbers)
    return NodeFacts(
        node=node.name,
        module=meta.provenance(node).name,
        operator="input" if node.op == "placeholder" else _operator(node),
        shape=tuple(node.meta.get("shape", ())),
        weight=None if reason else _weight(quantized, node),
        bits=bits,
        grid=grid,
        scale=scale,
        zero_point=zero_point,
        owner=meta.grid_owner(node).name,
        float_reason=reason,
        note=quantized.notes.get(node.name, ""),
        sources=tuple(n.name for n in node.all_input_nodes if n.op != "get_attr"),
    )


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _weight(quantized: Quantized, node: Node) -> Weight | None:
    if not meta.is_weighted(node):
        return None
    source = node.args[1]
    assert isinstance(source, Node)
    qparams = meta.qparams(source)
    scales = (float(qparams.scale.min()), float(qparams.scale.max()))
    codes = meta.tensor_of(quantized.calibrated, source).detach()
    return Weight(codes, qparams.spec.dtype.bits, scales, _channel_bytes(node))


def _channel_bytes(node: Node) -> int:
    """Bytes of bias, multiplier and shift: 4, 2 and 1 between 8-bit codes."""
    result = meta.quant(node)
    source = width_of(meta.qparams(node.all_input_nodes[0]).spec.dtype.bits)
    written = width_of(8 if result is None else result.spec.dtype.bits)
    return source.accumulator.itemsize + written.multiplier.itemsize + 1
