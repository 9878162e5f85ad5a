"""Measurements of every value: errors, where the noise comes from, histograms, channel ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.calibration import batches_of, check_batch
from fxquant.errors import CalibrationError
from fxquant.inspection.histogram import Histogram, code_counts
from fxquant.inspection.probe import Observation, Probe, float_graph
from fxquant.inspection.similarity import Similarity, Sums
from fxquant.ir import meta
from fxquant.model import Quantized
from fxquant.numerics.types import QParams

SAMPLES = 32
BATCH = 4  # all values of the float network are held for one such batch


@dataclass(frozen=True, slots=True)
class NoiseShares:
    """Where the noise of an operator comes from; the three add up to 1 (to 0 if there is none).

    Attributes:
        weight: Rounding of its weight.
        operands: Rounding of what it reads.
        result: Rounding and clipping of its result.
    """

    weight: float
    operands: float
    result: float


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """What was measured of one value.

    Attributes:
        node: Its name.
        cumulative: The quantized network against the float network.
        isolated: Float operands, only this operator quantized.
        noise: What the isolated noise consists of.
        values: Histogram of the value; None if it has no grid.
        channels: Largest magnitude of every channel (axis 1) in the float network, `[C]`.
    """

    node: str
    cumulative: Similarity
    isolated: Similarity
    noise: NoiseShares
    values: Histogram | None
    channels: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """Of a network.

    Attributes:
        values: By node name, in execution order.
        weights: By layer name, the float weight in units of its codes, `[O, ...]`; empty if the
            float model was not given.
    """

    values: Mapping[str, Measurement]
    weights: Mapping[str, Tensor]


@torch.no_grad()
def measure(
    quantized: Quantized, data: Any, model: Any = None, samples: int = SAMPLES
) -> Measurements:
    """Run both networks on data.

    Args:
        quantized: From `fxquant.convert`.
        data: As in `fxquant.calibrate`: a tensor or an iterable of batches.
        model: The float model; without it the error of the weights does not show.
        samples: How many inputs to use at most.

    Raises:
        CalibrationError: There is no data, or it cannot be run.
        ConfigError: `model` is not the one that was quantized.
    """
    nodes = {n.name: n for n in quantized.calibrated.graph.nodes}
    inputs = sum(n.op == "placeholder" for n in nodes.values())
    probe: Probe | None = None
    taken: dict[str, _Value] = {}
    seen = 0
    for batch in batches_of(data, inputs):
        check_batch(quantized.calibrated, batch)
        chunks = zip(*(x[: samples - seen].split(BATCH) for x in batch), strict=True)
        for chunk in chunks:
            if probe is None:
                original = (
                    None if model is None else float_graph(model, chunk, quantized.calibrated)
                )
                probe = Probe(quantized.graph_module, original)
            for seen_value in probe.observe(chunk):
                node = nodes[seen_value.node]
                taken.setdefault(node.name, _Value(grid_of(node))).add(seen_value)
            seen += len(chunk[0])
        if seen >= samples:
            break
    if probe is None:
        raise CalibrationError("no data to measure the errors on", remedy="pass a non-empty loader")
    return Measurements(
        {name: value.measurement(name) for name, value in taken.items()},
        _float_weights(quantized, probe),
    )


def grid_of(node: Node) -> QParams | None:
    """The grid a value of the network lies on, None if it leaves its operator as a float."""
    return None if meta.quant(node) is None or meta.delivers_float(node) else meta.qparams(node)


@dataclass(slots=True, eq=False)
class _Value:
    """Sums over batches.

    Args:
        grid: The value's grid.
    """

    grid: QParams | None
    cumulative: Sums = field(default_factory=Sums)
    isolated: Sums = field(default_factory=Sums)
    noise: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    before: Tensor | int = 0
    after: Tensor | int = 0
    channels: Tensor | None = None

    def add(self, seen: Observation) -> None:
        """Take in a batch."""
        self.cumulative.add(seen.original, seen.simulated)
        self.isolated.add(seen.original, seen.isolated)
        steps = (seen.original, seen.weight_only, seen.unrounded, seen.isolated)
        for i, (a, b) in enumerate(pairwise(steps)):
            if a is not b:
                self.noise[i] += float((a - b).double().square().sum())
        if seen.original.ndim > 1:
            rest = [axis for axis in range(seen.original.ndim) if axis != 1]
            largest = seen.original.abs().amax(rest)
            known = self.channels
            self.channels = largest if known is None else torch.maximum(known, largest)
        if self.grid is not None:
            scale, zero_point, dtype = self.grid.scale, self.grid.zero_point, self.grid.spec.dtype
            self.before = self.before + code_counts(seen.original / scale + zero_point, dtype)
            self.after = self.after + code_counts(seen.simulated / scale + zero_point, dtype)

    def measurement(self, name: str) -> Measurement:
        """Of everything seen."""
        total = sum(self.noise) or 1.0
        weight, operands, result = (part / total for part in self.noise)
        histogram = None
        if isinstance(self.before, Tensor) and isinstance(self.after, Tensor):
            assert self.grid is not None
            counts = (tuple(self.before.tolist()), tuple(self.after.tolist()))
            histogram = Histogram(*counts, _ends(self.grid))
        channels = () if self.channels is None else tuple(self.channels.tolist())
        return Measurement(
            name, self.cumulative.similarity(), self.isolated.similarity(),
            NoiseShares(weight, operands, result), histogram, channels,
        )  # fmt: skip


def _ends(grid: QParams) -> tuple[float, float]:
    """The real values of the first and the last code of a per-tensor grid."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return (
        (grid.spec.dtype.qmin - zero_point) * scale,
        (grid.spec.dtype.qmax - zero_point) * scale,
    )


def _float_weights(quantized: Quantized, probe: Probe) -> dict[str, Tensor]:
    """The float weights of layers whose channels were not scaled, divided by their scales."""
    if probe.original is None:
        return {}
    originals = {n.name: n for n in probe.original.graph.nodes}
    weights = {}
    for node in quantized.calibrated.graph.nodes:
        if not meta.is_layer(node):
            continue
        factors = [meta.channel_factors(n) for n in (node, node.all_input_nodes[0])]
        if any(f is not None for f in factors):
            continue
        weight = meta.tensor_of(probe.original, originals[node.name].args[1])
        scale, _ = meta.qparams(node.args[1]).broadcast(weight.ndim)
        weights[node.name] = weight.detach() / scale
    return weights
