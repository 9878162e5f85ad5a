"""Convolution kernels: chooses between the implicit matrix product and the depthwise kernel."""

from __future__ import annotations

import numpy as np

from fxquant.targets import Target
from tvm_backend.emit.conv_gemm import gemm_kernel
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_stage import conv_mac, requantize_stage
from tvm_backend.emit.depthwise import covers, depthwise_kernel
from tvm_backend.emit.epilogue import Accumulate, OutputStage
from tvm_backend.kernel import Kernel
from tvm_backend.macs import Mac
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
    """`reference.conv2d`: inputs x[, residual], output codes.

    Args:
        problem: Storages and geometry.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: int32 or int64 `[O]`.
        multiplier: int16 or int32 `[O]`.
        shift: int8 `[O]`.
        target: Device.
        tile: Register tile; by default chosen by the cost model.
    """
    mac = conv_mac(problem, np.asarray(weight), bias, target)
    natural = problem.groups > 1 and not covers(problem, mac)
    stage = requantize_stage(problem, mac, multiplier, shift, target, natural)
    return _kernel(problem, stage, np.asarray(weight), bias, mac, tile)


def conv2d_accumulate_kernel(
    problem: ConvProblem,
    *,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    tile: Tile | None = None,
) -> Kernel:
    """`reference.conv2d_accumulate`: input x, output accumulators; arguments as `conv2d_kernel`."""
    mac = conv_mac(problem, np.asarray(weight), bias, target)
    stage = Accumulate(problem.output, mac.idiom)
    return _kernel(problem, stage, np.asarray(weight), bias, mac, tile)


def _kernel(
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    mac: Mac,
    tile: Tile | None,
) -> Kernel:
    if covers(problem, mac):
        return depthwise_kernel(problem, stage, weight, bias, mac, tile)
    return gemm_kernel("conv2d", problem, stage, weight, bias, mac, tile)
