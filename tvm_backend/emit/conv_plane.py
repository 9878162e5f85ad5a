"""What a Winograd kernel transforms: a plane of pixels, or one of blocks of pixels.

A convolution of stride 2 is one of stride 1 over blocks of 2x2 pixels, with the channels of all
four: a 7x7 window covers 4x4 blocks, its eighth row and column weigh nothing. That is done where
a block fits one vector, which the network input's do. Behind it, 3x3 windows of stride 2 become
2x2 blocks, a quarter of whose weights are zero; filtering saves less there than transforms cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fxquant.numerics.width import WIDTH_8
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE, code_width
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Plane:
    """The convolution of stride 1 that equals a problem.

    Attributes:
        problem: The convolution.
    """

    problem: ConvProblem

    @property
    def stride(self) -> int:
        """Pixels along an axis of a block."""
        return self.problem.stride[0]

    @property
    def window(self) -> int:
        """Blocks along an axis of a window."""
        return -(-self.problem.kernel[0] // self.stride)

    @property
    def depth(self) -> int:
        """Channels of a block."""
        return self.stride**2 * self.problem.source.c

    @property
    def channels(self) -> int:
        """Elements of a block once it is transformed; those beyond `depth` mean nothing."""
        return self.stride**2 * self.problem.source.channels

    @property
    def has_whole_blocks(self) -> bool:
        """Whether blocks are small, and the last window's last column of them is in the source."""
        source, windows = self.problem.source, self.problem.output.w
        end = self.stride * (windows - 1 + self.window) - self.problem.padding[2]
        return source.channels == INPUT_CHANNEL_MULTIPLE and end <= source.w + source.halo[3]

    def lanes(self, largest: int) -> int:
        """Elements transformed at once, by vectors of `largest`."""
        return int(np.gcd(largest, self.channels)) if self.stride == 1 else self.channels

    def weights(self, weight: np.ndarray) -> np.ndarray:
        """int8 `[O, C, KH, KW]` -> `[O, depth, window, window]`."""
        stride, window = self.stride, self.window
        outputs, inputs, *kernel = weight.shape
        missing = [(0, window * stride - k) for k in kernel]
        blocks = np.pad(weight, [(0, 0), (0, 0), *missing])
        blocks = blocks.reshape(outputs, inputs, window, stride, window, stride)
        return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(outputs, self.depth, window, window)

    def corners(self, n: Any, h: Any, w: Any, size: int) -> list[list[tuple[Any, ...]]]:
        """Where the rows of each block of `size x size` of them begin.

        Behind the last row or column of the source stands the last one again.

        Args:
            n: Image.
            h: First row of blocks, in windows.
            w: First column.
            size: Blocks along an axis.
        """
        source, stride = self.problem.source, self.stride
        top, left = self.problem.padding[0], self.problem.padding[2]
        last_row = source.h + source.halo[1] - 1
        last_col = source.w + source.halo[3] - stride
        rows = [
            [T.Bind(T.min(stride * h + (stride * r + p - top), last_row))
             for p in range(stride)]
            for r in range(size)
        ]  # fmt: skip
        cols = [T.Bind(T.min(stride * w + (stride * c - left), last_col)) for c in range(size)]
        return [
            [tuple(T.Bind(source.offset(n, row, col, 0)) for row in pair) for col in cols]
            for pair in rows
        ]

    def words(self, x: Any, corner: tuple[Any, ...], first: Any, lanes: int) -> Any:
        """Stored codes of a block as int16.

        Args:
            x: The source.
            corner: Where its rows begin.
            first: First of the elements.
            lanes: How many.
        """
        if self.stride == 1:
            codes = load(x, corner[0] + first, lanes)
        else:
            per_row = self.channels // self.stride
            rows = [T.Bind(load(x, row, per_row)) for row in corner]
            codes = shuffle(rows, self._used() + [0] * (self.channels - self.depth))
        return T.Bind(T.cast(codes, f"int16x{lanes}"))

    def _used(self) -> list[int]:
        """Elements of a block that carry values, as they lie in its rows."""
        stored, used = self.problem.source.channels, self.problem.source.c
        return [pixel * stored + c for pixel in range(self.stride**2) for c in range(used)]


def plane_of(problem: ConvProblem) -> Plane | None:
    """The plane of a convolution, or None where there is none for Winograd's filtering."""
    (kh, kw), (sh, sw), plane = problem.kernel, problem.stride, Plane(problem)
    if kh != kw or sh != sw or problem.groups > 1 or problem.dilation != (1, 1):
        return None
    if code_width(problem.source.dtype) is not WIDTH_8:
        return None
    return plane if sh == 1 or (sh == 2 and plane.has_whole_blocks) else None
