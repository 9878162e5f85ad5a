"""Hypothesis strategies shared by the suite: numbers of the integer arithmetic, and tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from fxquant.numerics.width import Width, width_of

ZERO_POINT = st.integers(0, 255)
BITS = st.integers(2, 8)
SIZE = st.sampled_from((1, 2, 3, 4, 5, 7, 15, 16, 17))
SEED = st.integers(0, 1 << 20)


def accumulators(width: Width) -> st.SearchStrategy[int]:
    """Accumulators of operators that read codes of a width."""
    return st.integers(-width.largest_accumulator - 1, width.largest_accumulator)


def multipliers(width: Width) -> st.SearchStrategy[int]:
    """m."""
    top = 1 << width.multiplier_bits
    return st.integers(top // 2, top - 1)


def shifts(width: Width) -> st.SearchStrategy[int]:
    """s."""
    return st.integers(width.min_shift, width.max_shift)


def zero_points(width: Width) -> st.SearchStrategy[int]:
    """Zero points of codes of the full width."""
    return st.integers(0, (1 << width.bits) - 1)


@st.composite
def int32_near_ties(draw: st.DrawFn, shift: int) -> int:
    """Accumulators at, just below and just above the rounding ties of a shift."""
    step = 1 << max(shift, 0)
    base = draw(st.integers(-(1 << 16), 1 << 16)) * step
    value = base + step // 2 + draw(st.integers(-1, 1))
    return max(min(value, (1 << 31) - 1), -(1 << 31))


@dataclass(frozen=True)
class Codes:
    """Random uint8 codes with a zero point and their clip range."""

    tensor: Tensor
    zero_point: int
    qmax: int


def random_codes(shape: tuple[int, ...], seed: int, qmax: int = 255) -> Tensor:
    """Codes in `[0, qmax]`, both ends present where there is room."""
    rng = torch.Generator().manual_seed(seed)
    dtype = width_of(qmax.bit_length()).codes
    codes = torch.randint(0, qmax + 1, shape, generator=rng, dtype=dtype)
    flat = codes.view(-1)
    if flat.numel() >= 2:
        flat[0], flat[-1] = 0, qmax
    return codes


@st.composite
def codes(draw: st.DrawFn, *shape: int) -> Codes:
    """Codes of a random width and zero point."""
    qmax = (1 << draw(BITS)) - 1
    return Codes(random_codes(shape, draw(SEED), qmax), draw(st.integers(0, qmax)), qmax)


def random_weight(shape: tuple[int, ...], seed: int, bits: int = 8) -> Tensor:
    """int8 narrow weight codes."""
    largest = (1 << (bits - 1)) - 1
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=rng).to(torch.int8)
