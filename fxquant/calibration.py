"""Streaming calibration: ranges of every value, and a bounded sample of inputs for the solvers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.errors import CalibrationError
from fxquant.ir import meta
from fxquant.ir.batch import channels_last, samples_at_once
from fxquant.ir.device import device_of, working_on
from fxquant.ir.floats import FloatNetwork, channel_bounds, clamped
from fxquant.ir.headroom import with_headroom
from fxquant.ir.inputs import check_inputs
from fxquant.ir.meta import TensorQuant
from fxquant.numerics.ranges import RangeEstimator, Statistics
from fxquant.numerics.types import QParams, QuantSpec, qparams_from_range
from fxquant.ops import Grid
from fxquant.ops.shape import pad


def tensors_of(batch: Any, inputs: int) -> tuple[Tensor, ...]:
    """The model inputs in a batch: a tensor, a tuple of inputs, or `(inputs..., label)`.

    Raises:
        CalibrationError: The batch has too few tensors.
    """
    values = (batch,) if isinstance(batch, Tensor) else batch
    values = values if isinstance(values, tuple | list) else ()
    tensors = tuple(v for v in values[:inputs] if isinstance(v, Tensor) and v.ndim)
    if len(tensors) != inputs:
        raise CalibrationError(
            f"a calibration batch has {len(tensors)} tensors with a batch axis, the model takes "
            f"{inputs} inputs",
            where=f"batch of type {type(batch).__name__}",
            remedy="yield tensors, tuples of the model's inputs, or (inputs..., label)",
        )
    return tensors


def batches_of(data: Any, inputs: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches from a tensor (one batch), a DataLoader or any iterable of batches; no empty ones.

    Raises:
        CalibrationError: The data cannot be iterated, or a batch has too few tensors.
    """
    if not isinstance(data, Tensor | Iterable):
        raise CalibrationError(
            f"calibration data is a {type(data).__name__}",
            remedy="pass a tensor, a DataLoader or an iterable of batches",
        )
    source: Iterable[Any] = (data,) if isinstance(data, Tensor) else data
    for batch in source:
        tensors = tensors_of(batch, inputs)
        if any(map(len, tensors)):
            yield tensors


def example_of(data: Any, inputs: int) -> tuple[Tensor, ...]:
    """The first sample of the first batch.

    Raises:
        CalibrationError: There is none, or the data could not be read again.
    """
    first = None if isinstance(data, Iterator) else next(batches_of(data, inputs), None)
    if first is None:
        raise CalibrationError(
            "example inputs cannot be taken from this data",
            why="it is empty, or an iterator that can be read only once",
            remedy="pass example_inputs, or a list or DataLoader",
        )
    return tuple(x[:1] for x in first)


def check_batch(gm: GraphModule, inputs: Sequence[Any]) -> None:
    """Refuse a batch nothing can be learned from.

    Raises:
        CalibrationError: Wrong number, shape or dtype, NaN or infinite values.
    """
    check_inputs(gm, inputs, CalibrationError)
    names = (n.name for n in gm.graph.nodes if n.op == "placeholder")
    for name, x in zip(names, inputs, strict=True):
        if not bool(torch.isfinite(x).all()):
            raise CalibrationError(
                f"input {name} contains NaN or infinite values", remedy="clean the calibration data"
            )


class _Observer(FloatNetwork):
    """Runs the float graph and feeds the statistics."""

    def __init__(
        self, gm: GraphModule, statistics: dict[str, Statistics], terms: dict[str, float]
    ) -> None:
        super().__init__(gm)
        self.statistics, self.terms = statistics, terms

    def run_node(self, n: Node) -> Any:
        value = self._sum(n) if n.name in self.terms else super().run_node(n)
        statistics = self.statistics.get(n.name)
        if statistics is not None:
            statistics.update(value, meta.place(n))
        return value

    def _sum(self, n: Node) -> Tensor:
        """A layer with a residual, in two steps: its own term must fit the grid of the sum."""
        layer: Any = n.target
        (x, weight, bias, residual), kwargs = self.fetch_args_kwargs_from_env(n)
        term = layer(x, weight, bias, **{**kwargs, "clamp": None})
        self.terms[n.name] = max(self.terms[n.name], float(term.abs().amax()))
        return clamped(n, term + residual)


class SampleStore:
    """A uniform random sample of all inputs seen (reservoir sampling), bounded; on the CPU."""

    def __init__(self, limit: int, seed: int = 0) -> None:
        self.limit, self.seen = limit, 0
        self.samples: list[tuple[Tensor, ...]] = []
        self._rng = torch.Generator().manual_seed(seed)

    def add(self, inputs: tuple[Tensor, ...]) -> None:
        """Take in a batch."""
        for row in range(inputs[0].shape[0]):
            self.seen += 1
            place = len(self.samples)
            if place == self.limit:
                place = int(torch.randint(self.seen, (1,), generator=self._rng))
            if place < self.limit:  # else the sample is not kept, and not copied
                kept = (x[row].detach().to("cpu", torch.float32, copy=True) for x in inputs)
                self.samples[place : place + 1] = [tuple(kept)]

    def stacked(self) -> list[Tensor]:
        """One `[S, ...]` tensor a network input, in random order.

        Solvers use the first samples for statistics and hold back the last ones: data sorted by
        class would make these two different worlds.
        """
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(0))
        columns = zip(*(self.samples[i] for i in order.tolist()), strict=True)
        return [torch.stack(column) for column in columns]


class Calibration:
    """State of a calibration in progress.

    Args:
        gm: ANNOTATED graph.
        estimators: Range estimator of every value that owns its grid.
        samples: How many inputs to keep for the solvers.
    """

    def __init__(
        self, gm: GraphModule, estimators: dict[str, RangeEstimator], samples: int
    ) -> None:
        self.gm, self.estimators = gm, estimators
        self.inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
        self.statistics = {
            n.name: Statistics()
            for n in gm.graph.nodes
            if n.name in estimators and not meta.shares_grid(n)
        }
        self.terms = {n.name: 0.0 for n in gm.graph.nodes if _adds_residual(n)}
        self.store = SampleStore(samples)

    def forget(self) -> None:
        """Begin anew."""
        self._forget_ranges()
        self.store = SampleStore(self.store.limit)

    @torch.no_grad()
    def observe(self, *inputs: Tensor) -> Any:
        """Run the float model on a batch and remember what it shows; returns its output.

        Args:
            inputs: See `check_batch`.

        Raises:
            CalibrationError: A value inside the model is NaN or infinite.
        """
        device = device_of(self.gm)
        batch = [channels_last(x.to(device, torch.float32)) for x in inputs]
        with working_on(device):
            result = _Observer(self.gm, self.statistics, self.terms).run(*batch)
        self.store.add(inputs)
        return result

    def kept(self, batch: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """The kept samples in batches the graph can run.

        Args:
            batch: The only batch size it can run, None if any will do; a rest is left out.

        Raises:
            CalibrationError: No data was seen.
        """
        self._check_seen()
        samples, size = self.store.stacked(), batch or samples_at_once(self.gm.graph.nodes)
        device = device_of(self.gm)
        count = len(samples[0]) // size * size if batch else 0
        for start in range(0, count or len(samples[0]), size):
            yield tuple(channels_last(s[start : start + size].to(device)) for s in samples)

    @torch.no_grad()
    def reobserve(self, batch: int | None = None) -> None:
        """Gather the statistics anew, on the kept samples, after the graph was rewritten."""
        self._forget_ranges()
        observer = _Observer(self.gm, self.statistics, self.terms)
        for inputs in self.kept(batch):
            observer.run(*inputs)

    def _forget_ranges(self) -> None:
        self.statistics = {name: Statistics() for name in self.statistics}
        self.terms = dict.fromkeys(self.terms, 0.0)

    def _check_seen(self) -> None:
        if self.store.seen == 0:
            raise CalibrationError(
                "no calibration data was seen",
                remedy="pass a non-empty loader to calibrate(), or call prepared(x) on batches",
            )

    def set_grids(self) -> None:
        """Turn statistics into the qparams of every value.

        Raises:
            CalibrationError: No data was seen.
        """
        self._check_seen()
        for node in self.gm.graph.nodes:
            value = meta.quant(node)
            if value is None or node.op == "get_attr":
                continue
            if node.name in self.statistics:
                qparams = self._range(node, value.spec)
            else:
                qparams = meta.qparams(node.all_input_nodes[0])
            meta.set_quant(node, TensorQuant(value.spec, qparams, value.origin))

    def _range(self, node: Node, spec: QuantSpec) -> QParams:
        """The grid of a value that owns one."""
        statistics = self.statistics[node.name]
        low, high = self.estimators[node.name].estimate(statistics, spec)
        constants = [v for v in _padded_values(node) if math.isfinite(v)]
        low, high = _within_clamps(node, min([low, *constants]), max([high, *constants]))
        qparams = qparams_from_range(torch.tensor(low), torch.tensor(high), spec)
        if node.name in self.terms:
            meta.set_term(node, self.terms[node.name])
        return with_headroom(node, qparams)


def _within_clamps(node: Node, low: float, high: float) -> tuple[float, float]:
    """A range that ends where the first channel of a value is clamped."""
    lower, upper = channel_bounds(node)
    low = low if lower is None else max(low, float(lower.max()))
    return low, high if upper is None else min(high, float(upper.min()))


def _padded_values(node: Node) -> Iterator[float]:
    """Constants that padding puts on the grid a value owns."""
    for user in node.users:
        definition = meta.opdef(user)
        if definition is None or definition.grid is not Grid.SHARED:
            continue
        if user.target is pad:
            yield float(meta.static(user, "value"))
        yield from _padded_values(user)


def _adds_residual(node: Node) -> bool:
    """Whether a weighted layer adds an operand on its accumulators."""
    return meta.is_layer(node) and bool(meta.summands(node))
