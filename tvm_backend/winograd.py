"""Winograd's minimal filtering for small windows, in integers, exactly.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016: an `m x m` tile of the
outputs of an `r x r` window is `A^T [(G w G^T) * (B^T x B)] A`, with `*` element by element, so
that a sum over C channels takes `(m + r - 1)^2 C` products instead of `r^2 m^2 C`: 2.25 times fewer
for F(2x2, 3x3), 4 times for F(4x4, 3x3) and F(3x3, 4x4). The last two differ in G and A only.

G has fractions. The argument that integers suffice is our own:

* G' = diag(d) G has integer entries (d = 24, 24, 24, 24, 24, 12 with 6 points, 2 everywhere with
  4), and A' = A diag(f / d) too with f = 24 (or f = 2). So the result is f^2 times the
  accumulator: 576 = 2^6 * 9 times, or 4 times. Of the d that are possible, these leave the output
  transform least to do, and keep transformed codes of 8 bits within int16.
* B and A are small integers as well: if the transformed inputs and weights fit int16, each product
  is exact, and sums, the output transform and a product by the inverse of 9 (odd, so it has one)
  are exact modulo 2^32. That gives `2^s * accumulator` modulo 2^32, s = 6 or 2.
* If the accumulator lies in `[-2^(31-s), 2^(31-s))`, this is `2^s * accumulator` itself as a signed
  number, and an arithmetic shift right by s is the accumulator.

`is_exact` proves these conditions from a layer's own weight codes and the range of its input.
Nothing is rounded anywhere, so it also does not matter what lies at inputs that no valid output
of a tile reads, as long as those are in the same range: they cancel exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Values are numpy arrays or TIR vectors; `bind` names what is used several times.
Bind = Callable[[Any], Any]
Line = Callable[[Sequence[Any], Bind], list[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Winograd:
    """One size of F(m x m, r x r).

    Attributes:
        m: Outputs along an axis of a tile.
        window: r, taps along an axis.
        weights: G' `[size, r]`.
        inputs: B^T `[size, size]`.
        outputs: A'^T `[m, size]`.
        input_line: `B^T x` with additions and shifts only.
        output_line: `A'^T x` likewise.
        odd: Odd part of the result's factor.
        shift: The result's factor is `odd * 2^shift`.
    """

    m: int
    window: int
    weights: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    input_line: Line
    output_line: Line
    odd: int
    shift: int

    def __str__(self) -> str:
        return f"F({self.m}x{self.m}, {self.window}x{self.window})"

    @property
    def size(self) -> int:
        """Inputs along an axis of a tile."""
        return self.m + self.window - 1

    @property
    def inverse(self) -> int:
        """Inverse of `odd` modulo 2^32."""
        return pow(self.odd, -1, 1 << 32)

    def transformed(self, codes: np.ndarray) -> np.ndarray:
        """`G' w G'^T`, int32 `[..., size^2]`, of codes `[..., r^2]`."""
        both = np.kron(self.weights, self.weights)  # [size^2, r^2]
        # Integers this small are exact in float32, whose matrix product is fast.
        return (codes.astype(np.float32) @ both.T.astype(np.float32)).astype(np.int32)

    def is_exact(self, weight: np.ndarray, low: int, high: int) -> bool:
        """Whether the kernel gives every accumulator of a layer.

        Args:
            weight: int8 `[O, C, r, r]`.
            low: Smallest input as stored.
            high: Largest input as stored.
        """
        positive, negative = _sums(np.kron(self.inputs, self.inputs))
        if not _fit(16, positive * low + negative * high, positive * high + negative * low):
            return False
        if not _fit(16, self.transformed(weight.reshape(*weight.shape[:2], -1))):
            return False
        positive, negative = _sums(weight.reshape(len(weight), -1))
        least, largest = positive * low + negative * high, positive * high + negative * low
        return _fit(32 - self.shift, least, largest)


def _sums(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the positive and of the negative entries of each row."""
    wide = rows.astype(np.int64)
    return np.maximum(wide, 0).sum(-1), np.minimum(wide, 0).sum(-1)


def _fit(bits: int, *values: np.ndarray) -> bool:
    """Whether all values are signed integers of that many bits."""
    bound = 1 << (bits - 1)
    return all(bool(((v >= -bound) & (v < bound)).all()) for v in values)


def both_axes(line: Line, grid: Sequence[Sequence[Any]], bind: Bind) -> list[list[Any]]:
    """A transform along the columns of a tile, then along its rows: `L grid L^T`."""
    columns = [line(column, bind) for column in zip(*grid, strict=True)]
    return [line(row, bind) for row in zip(*columns, strict=True)]


def _input_4(x: Sequence[Any], bind: Bind) -> list[Any]:
    values = [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]
    return [bind(value) for value in values]


def _output_2(x: Sequence[Any], bind: Bind) -> list[Any]:
    return [bind(x[0] + x[1] + x[2]), bind(x[1] - x[2] - x[3])]


def _input_6(x: Sequence[Any], bind: Bind) -> list[Any]:
    def times_4(value: Any) -> Any:
        return _twice(_twice(value, bind), bind)

    a, b = bind(x[4] - times_4(x[2])), bind(x[3] - times_4(x[1]))
    c, e = bind(x[4] - x[2]), bind(x[3] - x[1])
    d = _twice(e, bind)
    first, last = times_4(x[0] - x[2]) + c, x[5] - x[3] - _twice(d, bind)
    return [bind(value) for value in (first, a + b, a - b, c + d, c - d, last)]


def _output_4(x: Sequence[Any], bind: Bind) -> list[Any]:
    s, d = bind(x[1] + x[2]), bind(x[1] - x[2])
    p, q = bind(x[3] + x[4]), _twice(x[3] - x[4], bind)
    third = s + _twice(_twice(p, bind), bind)
    last = d + _twice(_twice(q, bind) + x[5], bind)
    return [bind(value) for value in (x[0] + s + p, d + q, third, last)]


def _output_3(x: Sequence[Any], bind: Bind) -> list[Any]:
    s, p = bind(x[1] + x[2]), bind(x[3] + x[4])
    second = x[1] - x[2] + _twice(x[3] - x[4], bind)
    third = s + _twice(_twice(p, bind) + x[5], bind)
    return [bind(value) for value in (x[0] + s + p, second, third)]


def _twice(value: Any, bind: Bind) -> Any:
    """A sum, not a product: a factor of Python's would widen int16 vectors to its own type."""
    value = bind(value)
    return bind(value + value)


F2 = Winograd(
    2,
    3,
    weights=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]),
    inputs=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    input_line=_input_4,
    output_line=_output_2,
    odd=1,
    shift=2,
)
_INPUTS_6 = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
F4 = Winograd(
    4,
    3,
    weights=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 12]]),
    inputs=_INPUTS_6,
    outputs=np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 2]]
    ),
    input_line=_input_6,
    output_line=_output_4,
    odd=9,
    shift=6,
)
F3 = Winograd(
    3,
    4,
    weights=np.array(
        [
            [6, 0, 0, 0],
            [-4, -4, -4, -4],
            [-4, 4, -4, 4],
            [1, 2, 4, 8],
            [1, -2, 4, -8],
            [0, 0, 0, 12],
        ]
    ),
    inputs=_INPUTS_6,
    outputs=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 2]]),
    input_line=_input_6,
    output_line=_output_3,
    odd=9,
    shift=6,
)
SIZES = (F2, F4, F3)
