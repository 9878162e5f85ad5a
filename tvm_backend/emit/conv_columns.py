"""Kernel columns as channels: a row of a kernel over small pixels is one run of memory.

The pixels of the network input have 4 stored channels. A kernel of 7 columns then multiplies 28
neighbouring elements a row, which is more for one register or one instruction than 4 elements each.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.layout import round_up
from tvm_backend.macs import Mac
from tvm_backend.schedule.tiles import holds_activations


def columns_as_channels(
    problem: ConvProblem, weight: np.ndarray, mac: Mac
) -> tuple[ConvProblem, np.ndarray]:
    """The same convolution with a kernel one column wide, where that helps an idiom.

    Args:
        problem: The convolution.
        weight: int8 `[O, C, KH, KW]`.
        mac: Idioms that hold several steps of activations in a register gain by it.

    Returns:
        As `one_column_wide`; those given where the pixels are large or a kernel row is no single
        run.
    """
    small = problem.source.channels < mac.idiom.reduction * mac.unroll
    if small and has_single_runs(problem) and holds_activations(mac.idiom):
        return one_column_wide(problem, weight)
    return problem, weight


def has_single_runs(problem: ConvProblem) -> bool:
    """Whether a row of the kernel, of several columns, is one run of memory."""
    return problem.groups == 1 and problem.dilation[1] == 1 < problem.kernel[1]


def one_column_wide(problem: ConvProblem, weight: np.ndarray) -> tuple[ConvProblem, np.ndarray]:
    """The same convolution with a kernel one column wide.

    The source is a view whose pixels overlap: `kw * channels` elements, `channels` apart. Stored
    channels beyond the last one have weights of zero.

    Args:
        problem: A convolution that `has_single_runs`.
        weight: int8 `[O, C, KH, KW]`.

    Returns:
        Problem and weight `[O, KW * channels, KH, 1]`.
    """
    source = problem.source
    padded = np.pad(weight, [(0, 0), (0, source.channels - source.c), (0, 0), (0, 0)])
    columns = padded.transpose(0, 3, 1, 2).reshape(len(weight), -1, problem.kernel[0], 1)
    return geometry_of_columns(problem), columns


def geometry_of_columns(problem: ConvProblem) -> ConvProblem:
    """The problem of `one_column_wide`."""
    source, (kh, kw) = problem.source, problem.kernel
    top, bottom, left, right = source.halo
    # Windows start in the first `w - kw + 1` columns (and the padding); rows keep their stride.
    view = replace(
        source,
        w=source.w - (kw - 1),
        c=kw * source.channels,
        halo=(top, bottom, left, right + kw - 1),
    )
    return replace(problem, source=view, kernel=(kh, 1))


def stays_inside(problem: ConvProblem, mac: Mac) -> bool:
    """Whether the last step of the last window ends inside the source's memory.

    A last step that is not full reads on behind its pixel; the weights there are zero.
    """
    source, output = problem.source, problem.output
    (sh, sw), (dh, dw) = problem.stride, problem.dilation
    last = source.offset(
        source.n - 1,
        (output.h - 1) * sh - problem.padding[0] + (problem.kernel[0] - 1) * dh,
        (output.w - 1) * sw - problem.padding[2] + (problem.kernel[1] - 1) * dw,
        0,
    )
    return last + round_up(source.c, mac.idiom.reduction) <= source.size
