"""From predicted losses to one bit width a layer, under a budget.

Every layer has a cost a bit: its weights (model size) or its bit-operations. All mappings spend at
most the budget:

* `greedy`: from the largest widths downwards, the step that adds the least loss per cost saved.
* `by_rate`: `b = round(worth + t)`, with the largest shift t that fits.
* `by_cluster`: 1-D k-means of the worths, clusters in rising order get rising widths, one width a
  cluster; of all such assignments the one with the least loss.

The worth of a layer is the width it would get, up to a constant, if widths were real numbers and
its loss fell by 6 dB a bit (reverse water-filling). With the Lagrangian multiplier mu,

    minimize  sum_l 4^(rate_l - b_l) + mu sum_l cost_l b_l   =>   b_l = rate_l - log4(cost_l) + t

`milp.py` has the exact solution. What the rounding of `greedy` and `by_rate` leaves of the budget
goes to the layers that gain most by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from fxquant.errors import ConfigError
from fxquant.recipes.network import Network


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a method knows of the free layers.

    Attributes:
        losses: Predicted loss of each layer at each candidate width, `[L, B]`; they add up.
        rates: Bits per weight a layer is worth, `[L]`; None if the method has no such notion.
        note: What the user should know.
    """

    losses: np.ndarray
    rates: np.ndarray | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class BitProblem:
    """One width for each of L layers.

    Attributes:
        candidates: Widths, ascending, `B` of them.
        smallest: Smallest width of each layer, `[L]`.
        costs: Cost of each layer a bit, `[L]`.
        budget: What all layers together may cost.
        prediction: Their losses.
    """

    candidates: tuple[int, ...]
    smallest: np.ndarray
    costs: np.ndarray
    budget: float
    prediction: Prediction

    def __post_init__(self) -> None:
        if max(self.smallest) > self.candidates[-1]:
            raise ConfigError(
                f"no candidate of {self.candidates} is allowed in every layer",
                why=f"one needs {max(self.smallest)} bits at least (a depthwise convolution)",
                remedy=f"add {max(self.smallest)} or more to the candidates",
            )
        least = self.cost(self.lowest)
        if least > self.budget:
            total = float(self.costs.sum())
            raise ConfigError(
                f"an average of {self.budget / total:.3g} bits cannot be reached",
                why=f"the smallest widths of {self.candidates} take {least / total:.4g}",
                remedy="raise the average, or add smaller candidates",
            )

    @property
    def lowest(self) -> tuple[int, ...]:
        """The smallest allowed width of every layer."""
        return tuple(next(b for b in self.candidates if b >= s) for s in self.smallest)

    @property
    def worths(self) -> np.ndarray:
        """See the module docstring; needs rates. `[L]`."""
        assert self.prediction.rates is not None
        return self.prediction.rates - np.log2(self.costs) / 2

    def cost(self, bits: tuple[int, ...]) -> float:
        """Of an assignment."""
        return float(self.costs @ np.array(bits, dtype=np.float64))

    def fits(self, bits: tuple[int, ...]) -> bool:
        """Whether an assignment keeps the budget."""
        return self.cost(bits) <= self.budget

    def loss(self, bits: tuple[int, ...]) -> float:
        """Predicted loss of an assignment."""
        places = [self.candidates.index(b) for b in bits]
        return float(self.prediction.losses[np.arange(len(bits)), places].sum())

    def steps(self, bits: tuple[int, ...], direction: int) -> Iterator[tuple[float, int, int]]:
        """Every layer's next wider (+1) or narrower (-1) width.

        Yields:
            Loss added per unit of cost saved (or, for +1, removed per unit spent, negative), the
            layer and its new width.
        """
        for layer, width in enumerate(bits):
            place = self.candidates.index(width) + direction
            if not 0 <= place < len(self.candidates):
                continue
            new = self.candidates[place]
            if new >= self.smallest[layer]:
                losses = self.prediction.losses[layer]
                added = losses[place] - losses[place - direction]
                yield float(added / (self.costs[layer] * abs(new - width))), layer, new


class Method(ABC):
    """A way to allocate bits."""

    @abstractmethod
    def predict(
        self, network: Network, candidates: tuple[int, ...], data: Any, progress: bool
    ) -> Prediction:
        """Losses of the network's free layers.

        Args:
            network: The network.
            candidates: Widths.
            data: As in `fxquant.calibrate`, or None.
            progress: Show a progress bar.
        """

    @abstractmethod
    def choose(self, problem: BitProblem) -> tuple[int, ...]:
        """A width for every free layer, within the budget."""


def greedy(problem: BitProblem) -> tuple[int, ...]:
    """See the module docstring."""
    bits = tuple(problem.candidates[-1] for _ in problem.costs)
    while not problem.fits(bits):
        _, layer, width = min(problem.steps(bits, -1))
        bits = _with(bits, layer, width)
    return fill(problem, bits)


def by_rate(problem: BitProblem) -> tuple[int, ...]:
    """See the module docstring; between two candidates the nearer one is taken, or the wider."""
    worths = problem.worths
    candidates = np.array(problem.candidates)

    def at(shift: float) -> tuple[int, ...]:
        distance = np.abs(candidates[::-1] - (worths[:, None] + shift))
        nearest = candidates[::-1][distance.argmin(1)]
        return tuple(int(b) for b in np.maximum(nearest, problem.lowest))

    low = candidates[0] - worths.max() - 1.0  # everything at its lowest width: fits
    high = candidates[-1] - worths.min() + 1.0
    if problem.fits(at(high)):
        return at(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if problem.fits(at(middle)) else (low, middle)
    return fill(problem, at(low))


def by_cluster(problem: BitProblem) -> tuple[int, ...]:
    """See the module docstring; as many clusters as candidates."""
    labels = kmeans(problem.worths, len(problem.candidates))
    best: tuple[float, tuple[int, ...]] = (np.inf, problem.lowest)
    for widths in combinations_with_replacement(problem.candidates, int(labels.max()) + 1):
        bits = tuple(max(widths[c], s) for c, s in zip(labels, problem.lowest, strict=True))
        if problem.fits(bits):
            best = min(best, (problem.loss(bits), bits))
    return best[1]


def fill(problem: BitProblem, bits: tuple[int, ...]) -> tuple[int, ...]:
    """Spend what is left of the budget, where it removes the most loss per cost."""
    while True:
        gains = [s for s in problem.steps(bits, 1) if s[0] < 0]
        fitting = [s for s in gains if problem.fits(_with(bits, *s[1:]))]
        if not fitting:
            return bits
        bits = _with(bits, *min(fitting)[1:])


def kmeans(values: np.ndarray, clusters: int, rounds: int = 100) -> np.ndarray:
    """Cluster numbers of scalars by Lloyd's algorithm, in rising order of the centres, `[L]`.

    Deterministic: centres start at the quantiles. Empty clusters vanish; a value half-way between
    two centres belongs to the upper one.
    """
    centres = np.unique(np.quantile(values, (np.arange(clusters) + 0.5) / clusters))
    labels = np.zeros(len(values), dtype=np.int64)
    for _ in range(rounds):
        edges = (centres[1:] + centres[:-1]) / 2
        _, labels = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)
        moved = np.array([values[labels == c].mean() for c in range(labels.max() + 1)])
        if len(moved) == len(centres) and np.array_equal(moved, centres):
            break
        centres = moved
    return labels


def _with(bits: tuple[int, ...], layer: int, width: int) -> tuple[int, ...]:
    return (*bits[:layer], width, *bits[layer + 1 :])
