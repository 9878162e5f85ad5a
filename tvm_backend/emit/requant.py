"""The requantization of `fxquant.numerics.requantize` on vectors of int32, or int64 where needed.

Equal to it for every accumulator below 2^31 - 2^(s-1) in magnitude:

- a left shift clamps the accumulator to a word first; beyond that it saturates either way,
- the saturations of the last line are left out; they change no result.

Zero point and clip bounds are the stored ones (code + offset), so that the result is the stored
value: `((u + 32 + 64*zp) >> 6)` moves by exactly one per zero point.

Results of 8 bits are computed in int32 as long as the accumulators fit it, results of 16 bits in
int64: products of words have 62 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fxquant.numerics.accumulator import INT32_MAX
from fxquant.numerics.width import WIDTH_8, Width
from tvm_backend.call import Call
from tvm_backend.emit.loops import clip, splat, vector_type
from tvm_backend.layout import code_width
from tvm_backend.tvm_api import T

_ANY_INT64 = (1 << 62) - 1  # no accumulator is larger


@dataclass(frozen=True, slots=True)
class Grid:
    """Stored zero point (or a scalar expression) and clip bounds of a result, and its width."""

    zero_point: Any
    qmin: int
    qmax: int
    width: Width = WIDTH_8


def output_grid(call: Call) -> Grid:
    """The grid of a call's result, from its arguments."""
    numbers, offset = call.numbers, call.output.offset
    zero_point = numbers.get("output_zero_point", numbers.get("zero_point", 0))
    return Grid(
        zero_point + offset, numbers["qmin"] + offset, numbers["qmax"] + offset,
        code_width(call.output.storage.dtype),
    )  # fmt: skip


def as_int64(value: Any) -> Any:
    """An int64 vector or scalar of the same values."""
    return T.cast(value, vector_type("int64", _lanes(value)))


def _lanes(value: Any) -> int:
    _, _, lanes = str(value.ty).partition("x")
    return int(lanes or 1)


def _constant(value: int, like: Any) -> Any:
    """A constant of the type of another value."""
    return splat(value, str(like.ty).partition("x")[0], _lanes(like))


def scale(acc: Any, multiplier: Any, shift: int, bound: int, width: Width) -> Any:
    """`scale_accumulator` with an immediate shift.

    Args:
        acc: int32 or int64 vector or scalar.
        multiplier: m, an integer or an int32 scalar.
        shift: s, negative for a left shift.
        bound: Largest magnitude of `acc`, to leave out saturations that cannot happen.
        width: Width of the result.
    """
    half = 1 << (shift - 1) if shift > 0 else 0
    if width is not WIDTH_8 or bound + half > INT32_MAX:
        acc = as_int64(acc)
    if shift > 0:
        t = (acc + half) >> shift
        largest = (bound + half) >> shift
    elif shift == 0:
        t, largest = acc, bound
    else:
        t = acc if bound <= width.word_max else _saturate(acc, width)
        t = t << -shift
        largest = bound << -shift
    if largest > width.word_max:
        t = _saturate(t, width)
    return _multiply(t, multiplier, width)


class Numbers(NamedTuple):
    """m and s as `scale_by` takes them: int32 arrays, scalars or vectors.

    Attributes:
        multiplier: m.
        right: `max(s, 0)`.
        left: `max(-s, 0)`.
        half: `2^(s-1)` for s > 0, else 0.
    """

    multiplier: Any
    right: Any
    left: Any
    half: Any

    @staticmethod
    def of(multiplier: np.ndarray, shift: np.ndarray) -> Numbers:
        """Arrays, from m and s."""
        right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
        half = (1 << right) >> 1
        return Numbers(*(a.astype(np.int32) for a in (multiplier, right, left, half)))


def scale_by(acc: Any, numbers: Numbers, bound: int, width: Width) -> Any:
    """`scale_accumulator` with run-time numbers.

    Args:
        acc: int32 or int64 vector or scalar.
        numbers: m and s.
        bound: Largest magnitude of `acc`.
        width: Width of the result.
    """
    multiplier, right, left, half = numbers
    largest = INT32_MAX
    if width is not WIDTH_8 or bound + (1 << (width.max_shift - 1)) > INT32_MAX:
        largest = _ANY_INT64
        acc, right, left, half = map(as_int64, (acc, right, left, half))
    if bound > width.word_max:  # saturates either way if it is shifted left
        limit = T.Select(left > 0, _constant(width.word_max, left), _constant(largest, left))
        acc = clip(acc, -1 - limit, limit)
    t = _saturate(((acc << left) + half) >> right, width)
    return _multiply(t, multiplier, width)


def _saturate(value: Any, width: Width) -> Any:
    """To a word."""
    return clip(value, _constant(width.word_min, value), _constant(width.word_max, value))


def _multiply(t: Any, multiplier: Any, width: Width) -> Any:
    """`u`: in int32 for 8-bit results, in int64 for 16-bit ones."""
    if width is WIDTH_8:
        t = T.cast(t, vector_type("int32", _lanes(t)))
    elif not isinstance(multiplier, int):
        multiplier = as_int64(multiplier)
    product = t * multiplier + (1 << (width.multiplier_bits - 1))
    return product >> width.multiplier_bits


def to_stored(scaled: Any, grid: Grid) -> Any:
    """Round (the sum of) scaled values to stored values, as int32 or int64."""
    k = grid.width.fraction_bits
    stored = (scaled + ((1 << (k - 1)) + (grid.zero_point << k))) >> k
    return clip(stored, grid.qmin, grid.qmax)
