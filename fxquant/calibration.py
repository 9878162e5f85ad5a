"""Streaming calibration: ranges of every value, and a bounded sample of inputs for the solvers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxquant.errors import CalibrationError
from fxquant.ir import meta
from fxquant.ir.meta import TensorQuant
from fxquant.numerics.ranges import RangeEstimator, Statistics
from fxquant.numerics.types import qparams_from_range
from fxquant.ops import Grid


def tensors_of(batch: Any, inputs: int) -> tuple[Tensor, ...]:
    """The model inputs in a batch: a tensor, a tuple of inputs, or `(inputs..., label)`.

    Raises:
        CalibrationError: The batch has too few tensors.
    """
    values = (batch,) if isinstance(batch, Tensor) else batch
    values = values if isinstance(values, tuple | list) else ()
    tensors = tuple(v for v in values[:inputs] if isinstance(v, Tensor))
    if len(tensors) != inputs:
        raise CalibrationError(
            f"a calibration batch has {len(tensors)} tensors, the model takes {inputs} inputs",
            where=f"batch of type {type(batch).__name__}",
            remedy="yield tensors, tuples of the model's inputs, or (inputs..., label)",
        )
    return tensors


def batches_of(data: Any, inputs: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches from a tensor (one batch), a DataLoader or any iterable of batches.

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
        yield tensors_of(batch, inputs)


class _Observer(Interpreter):
    """Runs the float graph and feeds the statistics."""

    def __init__(self, gm: GraphModule, statistics: dict[str, Statistics]) -> None:
        super().__init__(gm)
        self.statistics = statistics

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        statistics = self.statistics.get(n.name)
        if statistics is not None:
            statistics.update(value, meta.place(n))
        return value


class SampleStore:
    """A uniform random sample of all inputs seen (reservoir sampling), bounded in number."""

    def __init__(self, limit: int, seed: int = 0) -> None:
        self.limit, self.seen = limit, 0
        self.samples: list[tuple[Tensor, ...]] = []
        self._rng = torch.Generator().manual_seed(seed)

    def add(self, inputs: tuple[Tensor, ...]) -> None:
        """Take in a batch."""
        for row in range(inputs[0].shape[0]):
            sample = tuple(x[row].detach().clone() for x in inputs)
            self.seen += 1
            if len(self.samples) < self.limit:
                self.samples.append(sample)
                continue
            place = int(torch.randint(self.seen, (1,), generator=self._rng))
            if place < self.limit:
                self.samples[place] = sample

    def stacked(self) -> list[Tensor]:
        """One `[S, ...]` tensor a network input."""
        return [torch.stack(column) for column in zip(*self.samples, strict=True)]


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
            n.name: Statistics() for n in gm.graph.nodes if n.name in estimators and _owns_grid(n)
        }
        self.store = SampleStore(samples)

    @torch.no_grad()
    def observe(self, *inputs: Tensor) -> Any:
        """Run the float model on a batch and remember what it shows; returns its output.

        Raises:
            CalibrationError: Wrong shape or dtype, NaN or infinite values.
        """
        self._check(inputs)
        inputs = tuple(x.to(torch.float32) for x in inputs)
        result = _Observer(self.gm, self.statistics).run(*inputs)
        self.store.add(inputs)
        return result

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self.inputs):
            raise CalibrationError(
                f"{len(inputs)} inputs were given, the model takes {len(self.inputs)}"
            )
        for node, x in zip(self.inputs, inputs, strict=True):
            expected = meta.shape_of(node)
            if x.ndim != len(expected) or tuple(x.shape[1:]) != expected[1:]:
                raise CalibrationError(
                    f"input {node.name} has shape {tuple(x.shape)}",
                    why=f"the model was prepared with {expected} (any batch size)",
                    remedy="resize the data, or prepare with example inputs of this shape",
                )
            if not x.dtype.is_floating_point:
                raise CalibrationError(
                    f"input {node.name} has dtype {x.dtype}",
                    remedy="convert it with .float() and normalize it as in training",
                )
            if not bool(torch.isfinite(x).all()):
                raise CalibrationError(
                    f"input {node.name} contains NaN or infinite values",
                    remedy="clean the calibration data",
                )

    def set_grids(self) -> None:
        """Turn statistics into the qparams of every value.

        Raises:
            CalibrationError: No data was seen.
        """
        if self.store.seen == 0:
            raise CalibrationError(
                "no calibration data was seen",
                remedy="pass a non-empty loader to calibrate(), or call prepared(x) on batches",
            )
        for node in self.gm.graph.nodes:
            value = meta.quant(node)
            if value is None or node.op == "get_attr":
                continue
            if node.name in self.statistics:
                statistics = self.statistics[node.name]
                low, high = self.estimators[node.name].estimate(statistics, value.spec)
                bounds = (torch.tensor(low), torch.tensor(high))
                qparams = qparams_from_range(*bounds, value.spec)
            else:
                qparams = meta.qparams(node.all_input_nodes[0])
            meta.set_quant(node, TensorQuant(value.spec, qparams, value.origin))


def _owns_grid(node: Node) -> bool:
    definition = meta.opdef(node)
    moves_codes = definition is not None and definition.grid is Grid.SHARED
    return not (moves_codes and meta.float_reason(node) is None)
