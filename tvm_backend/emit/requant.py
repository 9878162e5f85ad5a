"""The requantization of `fxquant.numerics.requantize` on int32 vectors of any width.

Equal to it for every accumulator below 2^31 - 2^(s-1) in magnitude:

- a left shift clamps the accumulator to int16 first; beyond that it saturates either way,
- the saturations of the last line are left out; they change no result.

Zero point and clip bounds are the stored ones (code + target offset), so that the result is the
stored value: `((u + 32 + 64*zp) >> 6)` moves by exactly one per zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxquant.numerics.requantize import FRACTION_BITS, INT16_MAX, INT16_MIN
from tvm_backend.call import Call
from tvm_backend.emit.loops import clip
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Grid:
    """Stored zero point and clip bounds of a result."""

    zero_point: int
    qmin: int
    qmax: int


def output_grid(call: Call) -> Grid:
    """The grid of a call's result, from its arguments."""
    numbers = call.numbers
    zero_point = numbers.get("output_zero_point", numbers.get("zero_point", 0))
    return Grid(
        zero_point + call.offset, numbers["qmin"] + call.offset, numbers["qmax"] + call.offset
    )


def scale(acc: Any, multiplier: int, shift: int, bound: int) -> Any:
    """`scale_accumulator` with an immediate multiplier and shift.

    Args:
        acc: int32 vector or scalar.
        multiplier: m.
        shift: s, negative for a left shift.
        bound: Largest magnitude of `acc`, to leave out saturations that cannot happen.
    """
    if shift > 0:
        t = (acc + (1 << (shift - 1))) >> shift
        largest = (bound + (1 << (shift - 1))) >> shift
    elif shift == 0:
        t, largest = acc, bound
    else:
        t = acc if bound <= INT16_MAX else clip(acc, INT16_MIN, INT16_MAX)
        t = t << -shift
        largest = bound << -shift
    if largest > INT16_MAX:
        t = clip(t, INT16_MIN, INT16_MAX)
    return (t * multiplier + (1 << 14)) >> 15


def scale_by(acc: Any, multiplier: Any, right: Any, left: Any, half: Any, bound: int) -> Any:
    """`scale_accumulator` with run-time numbers.

    Args:
        acc: int32 vector or scalar.
        multiplier: m, int32.
        right: `max(s, 0)`.
        left: `max(-s, 0)`.
        half: `2^(s-1)` for s > 0, else 0.
        bound: Largest magnitude of `acc`.
    """
    if bound > INT16_MAX:  # saturates either way if it is shifted left
        limit = T.Select(left > 0, T.int32(INT16_MAX), T.int32((1 << 31) - 1))
        acc = clip(acc, -1 - limit, limit)
    t = clip(((acc << left) + half) >> right, INT16_MIN, INT16_MAX)
    return (t * multiplier + (1 << 14)) >> 15


def to_stored(scaled: Any, grid: Grid) -> Any:
    """Round (the sum of) scaled values to stored values, as int32."""
    half = 1 << (FRACTION_BITS - 1)
    stored = (scaled + (half + (grid.zero_point << FRACTION_BITS))) >> FRACTION_BITS
    return clip(stored, grid.qmin, grid.qmax)
