"""Depthwise convolution: one input channel an output channel, vectorized over channels.

By rows (`depthwise_rows.py`) where an instruction sums several products a lane, or tap by tap
(`depthwise_taps.py`) where none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fxquant.targets import Target
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.depthwise_rows import exact_rows, rows_kernel
from tvm_backend.emit.depthwise_taps import exact_taps, taps_kernel
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import best_of
from tvm_backend.kernel import Kernel
from tvm_backend.macs import Mac, mac_of
from tvm_backend.macs.base import RowMac, TapMac
from tvm_backend.schedule.tiles import Tile, depthwise_tiles, tap_tiles

_OPERATOR = "dwconv2d"

_Schedule = tuple[RowMac | TapMac, Tile]


def covers(problem: ConvProblem, mac: Mac) -> bool:
    """Whether the problem is depthwise and its pixels are whole vectors.

    The quantized network input has pixels of 4 channels; it is left to the matrix product.
    """
    return problem.depthwise and problem.source.channels % mac.idiom.lanes == 0


def depthwise_kernel(
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    macs: Sequence[Mac],
    target: Target,
    tile: Tile | None = None,
) -> Kernel:
    """The kernel of a depthwise convolution with a given output stage.

    Args:
        problem: Storages and geometry, with groups == input channels == output channels.
        stage: What happens to the accumulators.
        weight: int8 `[C, 1, KH, KW]`.
        bias: `[C]`.
        macs: What can multiply and accumulate rows: the first serves every layer, the longest
            chain that is exact for these codes is taken before it.
        target: Device.
        tile: Register tile of one row of pixels, with vectors of channels that are finished
            together; by default a rule.
    """
    rows, cols = [mac for mac in macs if isinstance(mac, RowMac)], problem.output.w
    schedules: list[_Schedule] = [
        (mac, each)
        for mac in exact_rows(problem, weight, rows)
        for each in depthwise_tiles(mac.idiom, cols, stage.chunk_sizes(), target.half_width)
    ]
    by_taps: list[_Schedule] = [
        (mac, each)
        for mac in exact_taps(problem, stage, weight, [mac_of(idiom) for idiom in target.taps])
        for each in tap_tiles(mac.idiom, problem.kernel, cols)
    ]
    # The weights of a tile stay in registers; with more taps than those, rows have fewer to load.
    taps_first = problem.taps <= target.mac.registers
    schedules = [*by_taps, *schedules] if taps_first else [*schedules, *by_taps]
    if tile is not None:
        schedules = [(schedules[0][0], tile)]
    make = partial(_scheduled, problem, stage, weight, bias)
    return best_of(_OPERATOR, problem, stage, schedules, make)


def _scheduled(
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    mac: RowMac | TapMac,
    tile: Tile,
) -> Kernel:
    if isinstance(mac, TapMac):
        return taps_kernel(_OPERATOR, problem, stage, weight, bias, mac, tile)
    return rows_kernel(_OPERATOR, problem, stage, weight, bias, mac, tile)
