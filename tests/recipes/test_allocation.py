"""Mappings from losses to widths: within the budget, and as good as they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import ConfigError
from fxquant.recipes.allocation import (
    BitProblem,
    Prediction,
    by_cluster,
    by_rate,
    fill,
    greedy,
    kmeans,
)
from fxquant.recipes.milp import solve_milp
from tests.strategies import SEED

WIDTHS = (2, 3, 4, 6, 8)
MAPPINGS = (greedy, by_rate, by_cluster, solve_milp)
Mapping = Callable[[BitProblem], tuple[int, ...]]


def problem(
    seed: int, layers: int = 4, average: float = 4.0, arbitrary: bool = False
) -> BitProblem:
    """Layers of random size and rate; losses of 6 dB a bit, or any."""
    rng = np.random.default_rng(seed)
    rates, costs = rng.uniform(2, 6, layers), rng.integers(1, 2000, layers).astype(float)
    losses = 4.0 ** (rates[:, None] - np.array(WIDTHS))
    if arbitrary:
        losses = rng.uniform(0, 1, losses.shape)
    smallest = rng.choice([2, 2, 4], layers)
    return BitProblem(WIDTHS, smallest, costs, average * costs.sum(), Prediction(losses, rates))


def exhaustive(task: BitProblem) -> float:
    """The least loss over all assignments."""
    allowed = [[b for b in WIDTHS if b >= s] for s in task.smallest]
    return min(task.loss(bits) for bits in product(*allowed) if task.fits(bits))


@pytest.mark.parametrize("mapping", MAPPINGS)
@given(seed=SEED, average=st.floats(4, 9))
def test_budget_and_smallest_widths_are_kept(mapping: Mapping, seed: int, average: float) -> None:
    task = problem(seed, 6, average)
    bits = mapping(task)
    assert task.fits(bits)
    assert all(b in WIDTHS and b >= s for b, s in zip(bits, task.smallest, strict=True))
    assert mapping(task) == bits


@given(seed=SEED, average=st.floats(4, 7), arbitrary=st.booleans())
def test_milp_is_exact(seed: int, average: float, arbitrary: bool) -> None:
    task = problem(seed, 4, average, arbitrary)
    assert task.loss(solve_milp(task)) == pytest.approx(exhaustive(task), rel=1e-9)


@given(seed=SEED)
def test_milp_without_time_is_as_good_as_greedy(seed: int) -> None:
    task = problem(seed, 30)
    assert task.loss(solve_milp(task, time_limit=0.0)) <= task.loss(greedy(task))


@pytest.mark.parametrize("mapping", [greedy, by_rate])
@given(seed=SEED)
def test_heuristics_are_near_the_optimum(mapping: Mapping, seed: int) -> None:
    task = problem(seed, 30)
    assert task.loss(mapping(task)) <= 1.3 * task.loss(solve_milp(task))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_large_budget_gives_everybody_the_most(mapping: Mapping) -> None:
    assert set(mapping(problem(0, 6, 8.0))) == {8}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_layers_worth_more_get_more(mapping: Mapping) -> None:
    rates = np.array([3.0, 5.0, 4.0])
    losses = 4.0 ** (rates[:, None] - np.array(WIDTHS))
    task = BitProblem(WIDTHS, np.full(3, 2), np.ones(3), 9.0, Prediction(losses, rates))
    assert mapping(task) == (2, 4, 3)


def test_small_layers_get_more_bits() -> None:
    """Of equal rates: a bit of them costs less."""
    losses = np.tile(4.0 ** (4.0 - np.array(WIDTHS)), (2, 1))
    costs = np.array([1.0, 1000.0])
    task = BitProblem(WIDTHS, np.full(2, 2), costs, 4010.0, Prediction(losses, np.full(2, 4.0)))
    for mapping in MAPPINGS:
        assert mapping(task) == (8, 4)


def test_one_width_a_cluster() -> None:
    rates = np.array([1.0, 1.1, 5.0, 5.1, 5.05])
    losses = 4.0 ** (rates[:, None] - np.array([2, 4]))
    task = BitProblem((2, 4), np.full(5, 2), np.ones(5), 17.0, Prediction(losses, rates))
    assert by_cluster(task) == (2, 2, 4, 4, 4)
    assert by_cluster(replace(task, budget=15.0)) == (2, 2, 2, 2, 2)


def test_the_rest_of_the_budget_is_spent_where_it_helps_most() -> None:
    losses = np.array([[1.0, 0.5], [1.0, 0.1], [1.0, 1.0]])
    task = BitProblem((2, 3), np.full(3, 2), np.ones(3), 7.0, Prediction(losses))
    assert fill(task, (2, 2, 2)) == (2, 3, 2)
    assert fill(replace(task, budget=9.0), (2, 2, 2)) == (3, 3, 2)  # nothing gained by the last


def test_clusters_of_scalars() -> None:
    assert kmeans(np.array([5.0, 1.0, 1.2, 9.0, 5.1]), 3).tolist() == [1, 0, 0, 2, 1]
    assert kmeans(np.array([2.0, 2.0, 2.0]), 3).tolist() == [0, 0, 0]
    assert kmeans(np.array([7.0]), 4).tolist() == [0]


@given(seed=SEED, clusters=st.integers(1, 6))
def test_clusters_are_intervals_around_their_means(seed: int, clusters: int) -> None:
    values = np.random.default_rng(seed).normal(size=17)
    labels = kmeans(values, clusters)
    assert set(labels) == set(range(labels.max() + 1)) and labels.max() < clusters
    assert bool((np.diff(labels[np.argsort(values)]) >= 0).all())
    centres = np.array([values[labels == c].mean() for c in range(labels.max() + 1)])
    nearest = np.abs(values[:, None] - centres).argmin(1)
    assert np.array_equal(nearest, labels)


def test_budgets_that_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match=r"average of 1.5 bits"):
        problem(0, 4, 1.5)
    losses = Prediction(np.ones((1, 2)))
    with pytest.raises(ConfigError, match="depthwise"):
        BitProblem((2, 3), np.array([4]), np.ones(1), 100.0, losses)
