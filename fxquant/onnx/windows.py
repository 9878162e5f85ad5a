"""From the dialect's window tables to ONNX: stride and pads where they exist, else a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxquant.numerics.reference.pool import Windows
from fxquant.ops.pool import Taps


@dataclass(frozen=True, slots=True)
class Window:
    """Evenly spaced windows along one axis.

    Attributes:
        kernel: Taps of a window.
        stride: Distance of windows.
        dilation: Distance of taps.
        before: Padding in front.
        after: Padding behind.
    """

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int


def window(windows: Windows, size: int) -> Window | None:
    """The even spacing of clipped windows along one axis, None if there is none.

    Args:
        windows: `(start, stop, step)` an output index.
        size: Length of the axis.
    """
    taps = [tuple(range(*w)) for w in windows]
    kernel, dilation = max(map(len, taps)), max(step for *_, step in windows)
    strides = range(1, size + 1) if len(windows) > 1 else (1,)
    for stride in strides:
        for before in range((kernel - 1) * dilation + 1):
            starts = [i * stride - before for i in range(len(windows))]
            reach = [[s + k * dilation for k in range(kernel)] for s in starts]
            if [tuple(i for i in r if 0 <= i < size) for r in reach] == taps:
                return Window(kernel, stride, dilation, before, max(reach[-1][-1] + 1 - size, 0))
    return None


def averaging_matrix(windows: Windows, counts: Sequence[int], size: int) -> np.ndarray:
    """Average pooling along one axis, float32 `[len(windows), size]`."""
    matrix = np.zeros((len(windows), size), np.float32)
    for row, (taps, count) in enumerate(zip(windows, counts, strict=True)):
        matrix[row, slice(*taps)] = 1 / count
    return matrix


def interpolation_matrix(taps: Taps, size: int) -> np.ndarray:
    """Linear interpolation along one axis, float32 `[len(taps), size]`."""
    matrix = np.zeros((len(taps), size), np.float32)
    for row, (first, second, weight) in enumerate(taps):
        matrix[row, first] += 1 - weight
        matrix[row, second] += weight
    return matrix
