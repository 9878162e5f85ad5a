"""Linear layers: a 1x1 convolution whose pixels are the rows of the matrix.

With few rows the weights are the traffic: the tile choice then takes many vectors of outputs at
once, and each weight is read exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.targets import Target
from tvm_backend.emit.conv_amx import amx_alternatives, amx_kernel
from tvm_backend.emit.conv_gemm import gemm_kernel
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_stage import conv_macs, requantize_stage
from tvm_backend.emit.conv_weights import WeightForm
from tvm_backend.emit.epilogue import Accumulate, OutputGrid, OutputStage
from tvm_backend.kernel import Kernel
from tvm_backend.layout import NO_HALO, Image
from tvm_backend.macs import Mac
from tvm_backend.schedule.amx import AmxPlan
from tvm_backend.schedule.tiles import Tile


def linear_kernel(
    source: Image,
    output: Image,
    grid: OutputGrid,
    *,
    input_zero_point: int,
    weight: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    target: Target,
    tile: Tile | AmxPlan | None = None,
    form: WeightForm | None = None,
    input_qmax: int = 255,
) -> Kernel:
    """`reference.linear` on images of rank 2 (`h = w = 1`) or 3 (`h = 1`, `w` rows).

    Args:
        source: Input storage, `c = K`.
        output: Output storage, `c = O`.
        grid: Grid of the result.
        input_zero_point: Zero point of the input.
        weight: int8 `[O, K]`.
        bias: int32 or int64 `[O]`.
        multiplier: int16 or int32 `[O]`.
        shift: int8 `[O]`.
        target: Device.
        tile: Register tile, or blocking on matrix tiles; by default chosen by the cost model.
        form: How weights lie in memory; by default chosen by the cost model.
        input_qmax: Largest input code.
    """
    problem = ConvProblem(
        _as_rows(source), _as_rows(output), (1, 1), input_zero_point=input_zero_point,
        output_zero_point=grid.zero_point, qmin=grid.qmin, qmax=grid.qmax,
        input_qmax=input_qmax,
    )  # fmt: skip

    def stage(macs: Sequence[Mac]) -> OutputStage:
        return requantize_stage(problem, macs[0], multiplier, shift, target)

    made = _kernel(problem, stage, weight, bias, target, tile, form)
    return replace(made, inputs=(source,), output=output)


def linear_accumulate_kernel(
    source: Image,
    output: Image,
    *,
    input_zero_point: int,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    tile: Tile | AmxPlan | None = None,
    form: WeightForm | None = None,
    input_qmax: int = 255,
) -> Kernel:
    """`reference.linear_accumulate`: output accumulators; arguments as `linear_kernel`."""
    rows = _as_rows(output)
    problem = ConvProblem(
        _as_rows(source), rows, (1, 1), input_zero_point=input_zero_point, input_qmax=input_qmax
    )

    def stage(macs: Sequence[Mac]) -> OutputStage:
        return Accumulate(rows, macs[0].idiom)

    made = _kernel(problem, stage, weight, bias, target, tile, form)
    return replace(made, inputs=(source,), output=output)


def _kernel(
    problem: ConvProblem,
    make_stage: Callable[[Sequence[Mac]], OutputStage],
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    tile: Tile | AmxPlan | None,
    form: WeightForm | None,
) -> Kernel:
    codes = np.asarray(weight)[:, :, None, None]  # [O, K, 1, 1]
    macs = conv_macs(problem, codes, bias, target)
    stage = make_stage(macs)
    if isinstance(tile, AmxPlan):
        return amx_kernel("linear", problem, stage, codes, bias, target, tile)
    others = amx_alternatives("linear", problem, stage, codes, bias, target) if form is None else ()
    return gemm_kernel(
        "linear", problem, stage, codes, bias, macs, tile, others, form, target.half_width
    )


def _as_rows(image: Image) -> Image:
    """All rows of the batch as the columns of one image, so that tiles may span images.

    Raises:
        UnsupportedError: The image has a halo or several rows.
    """
    if image.halo != NO_HALO or image.h != 1:
        raise UnsupportedError(
            f"a linear layer cannot use storage {image}",
            why="its rows must be contiguous: no halo, height 1",
            remedy="this is an error of the layout planning; report it",
        )
    return Image(1, 1, image.n * image.w, image.c, image.channels, NO_HALO, image.dtype)
