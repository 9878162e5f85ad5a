"""Convolution kernels: chooses between the implicit matrix product and the depthwise kernel."""

from __future__ import annotations

import numpy as np

from fxquant.targets import Target
from tvm_backend.emit.conv_gemm import gemm_kernel
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.depthwise import covers, depthwise_kernel
from tvm_backend.emit.epilogue import Accumulate, OutputStage, Requantize
from tvm_backend.emit.epilogue_isa import epilogue_isa
from tvm_backend.kernel import Kernel
from tvm_backend.schedule.tiles import Tile


def conv2d_kernel(
    problem: ConvProblem,
    *,
    weight: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    target: Target,
    tile: Tile | None = None,
) -> Kernel:
    """`reference.conv2d`: inputs x[, residual], 8-bit output.

    Args:
        problem: Storages and geometry.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: int32 `[O]`.
        multiplier: int16 `[O]`.
        shift: int8 `[O]`.
        target: Device.
        tile: Register tile; by default chosen by the cost model.
    """
    depthwise = covers(problem, target)
    stage = Requantize(
        epilogue_isa(target),
        problem.output,
        problem.grid,
        np.asarray(multiplier),
        np.asarray(shift),
        problem.residual,
        natural=problem.groups > 1 and not depthwise,
    )
    return _kernel(problem, stage, np.asarray(weight), bias, target, tile)


def conv2d_accumulate_kernel(
    problem: ConvProblem,
    *,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    tile: Tile | None = None,
) -> Kernel:
    """`reference.conv2d_accumulate`: input x, int32 output; arguments as `conv2d_kernel`."""
    stage = Accumulate(problem.output, target.mac.lanes)
    return _kernel(problem, stage, np.asarray(weight), bias, target, tile)


def _kernel(
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    tile: Tile | None,
) -> Kernel:
    if covers(problem, target):
        return depthwise_kernel(problem, stage, weight, bias, target, tile)
    return gemm_kernel("conv2d", problem, stage, weight, bias, target, tile)
