"""Convolution kernels: matrix product, matrix tiles, Winograd or depthwise, by the cost model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxquant.targets import Target
from tvm_backend.emit.conv_amx import amx_alternatives, amx_kernel
from tvm_backend.emit.conv_gemm import gemm_kernel
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_stage import conv_macs, requantize_stage
from tvm_backend.emit.conv_winograd import winograd_alternatives, winograd_kernel
from tvm_backend.emit.depthwise import covers, depthwise_kernel
from tvm_backend.emit.epilogue import Accumulate, OutputStage
from tvm_backend.kernel import Kernel
from tvm_backend.macs import Mac
from tvm_backend.schedule.amx import AmxPlan
from tvm_backend.schedule.tiles import Tile
from tvm_backend.schedule.winograd import WinogradPlan

Schedule = Tile | WinogradPlan | AmxPlan


def conv2d_kernel(
    problem: ConvProblem,
    *,
    weight: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    target: Target,
    tile: Schedule | None = None,
    winograd: bool = True,
) -> Kernel:
    """`reference.conv2d`: inputs x[, residual], output codes.

    Args:
        problem: Storages and geometry.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: int32 or int64 `[O]`.
        multiplier: int16 or int32 `[O]`.
        shift: int8 `[O]`.
        target: Device.
        tile: Register tile, or blocking of a kernel of another kind; by default the cost model's
            choice.
        winograd: Whether the cost model may choose a Winograd kernel.
    """
    macs = conv_macs(problem, np.asarray(weight), bias, target)
    natural = problem.groups > 1 and not covers(problem, macs[0])
    stage = requantize_stage(problem, macs[0], multiplier, shift, target, natural)
    return _kernel(problem, stage, np.asarray(weight), bias, macs, target, tile, winograd)


def conv2d_accumulate_kernel(
    problem: ConvProblem,
    *,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    tile: Schedule | None = None,
    winograd: bool = True,
) -> Kernel:
    """`reference.conv2d_accumulate`: input x, output accumulators; arguments as `conv2d_kernel`."""
    macs = conv_macs(problem, np.asarray(weight), bias, target)
    stage = Accumulate(problem.output, macs[0].idiom)
    return _kernel(problem, stage, np.asarray(weight), bias, macs, target, tile, winograd)


def _kernel(
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    macs: Sequence[Mac],
    target: Target,
    tile: Schedule | None,
    winograd: bool,
) -> Kernel:
    if isinstance(tile, WinogradPlan):
        return winograd_kernel(problem, stage, weight, bias, target, tile)
    if isinstance(tile, AmxPlan):
        return amx_kernel("conv2d", problem, stage, weight, bias, target, tile)
    if covers(problem, macs[0]):
        return depthwise_kernel(problem, stage, weight, bias, macs, target, tile)
    others = amx_alternatives("conv2d", problem, stage, weight, bias, target)
    if winograd:
        others += winograd_alternatives(problem, stage, weight, bias, target)
    return gemm_kernel(
        "conv2d", problem, stage, weight, bias, macs, tile, others, half_width=target.half_width
    )
