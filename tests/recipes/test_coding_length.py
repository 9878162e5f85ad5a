"""The coding length: its invariances, closed forms, and what it says of redundant filters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import ConfigError, NumericsError
from fxquant.recipes import CodingLength, coding_length, coding_rate
from tests.strategies import SEED

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def vectors(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def orthogonal(seed: int, size: int) -> torch.Tensor:
    return torch.linalg.qr(vectors(seed, (size, size))).Q


@given(seed=SEED, shape=SHAPES, distortion=st.floats(1e-4, 10))
def test_it_is_the_definition(seed: int, shape: tuple[int, int], distortion: float) -> None:
    """With the Gram matrix of the definition, whichever is the smaller one."""
    v = vectors(seed, shape)
    n, m = shape
    matrix = torch.eye(n, dtype=v.dtype) + n / (m * distortion) * v @ v.T
    expected = (m + n) / 2 * float(torch.logdet(matrix)) / math.log(2)
    assert coding_length(v, distortion) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=SEED, shape=SHAPES)
def test_order_and_orientation_of_the_vectors_do_not_matter(
    seed: int, shape: tuple[int, int]
) -> None:
    v = vectors(seed, shape)
    length = coding_length(v, 0.1)
    shuffled = v[:, torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))]
    assert coding_length(shuffled, 0.1) == pytest.approx(length, rel=1e-9)
    assert coding_length(orthogonal(seed, shape[0]) @ v, 0.1) == pytest.approx(length, rel=1e-9)


def test_orthogonal_vectors_have_a_closed_form() -> None:
    n, power, distortion = 6, 3.0, 0.2
    v = orthogonal(0, n) * math.sqrt(power)
    expected = n * n * math.log2(1 + power / distortion)
    assert coding_length(v, distortion) == pytest.approx(expected)


@given(seed=SEED, factor=st.floats(1e-3, 1e3))
def test_the_rate_knows_no_scale(seed: int, factor: float) -> None:
    weight = vectors(seed, (5, 12)).reshape(5, 3, 2, 2)
    rate = coding_rate(weight, 0.01)
    assert coding_rate(weight * factor, 0.01) == pytest.approx(rate, rel=1e-6)
    assert coding_rate(weight, 0.1) < rate


def test_many_white_vectors_have_the_gaussian_rate() -> None:
    """`1/2 log2(1 + 1/c)` bits a number: the rate-distortion function."""
    weight = vectors(0, (20000, 4))
    assert coding_rate(weight, 0.01) == pytest.approx(0.5 * math.log2(101), rel=0.01)


def test_redundant_filters_are_worth_less() -> None:
    white = vectors(0, (8, 16))
    low_rank = vectors(1, (8, 2)) @ vectors(2, (2, 16))
    assert coding_rate(low_rank, 0.01) < 0.5 * coding_rate(white, 0.01)
    assert coding_rate(torch.zeros(4, 3), 0.01) == 0


def test_weights_that_are_no_numbers() -> None:
    with pytest.raises(NumericsError, match="not finite"):
        coding_rate(torch.full((2, 2), float("nan")), 0.01)


@pytest.mark.parametrize("wrong", [{"mapping": "random"}, {"distortion": 0.0}], ids=str)
def test_bad_parameters(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        CodingLength(**wrong)
