"""3x3 convolution of stride 1 by Winograd's minimal filtering.

The arithmetic, and why it is exact, is in `tvm_backend/winograd.py`.

Tiles of outputs, counted through the whole batch, are done in blocks. For a block of T tiles:

1. input transform: stored codes -> `v` int16 `[(m + 2)^2][T][channels]`;
2. for each block of output channels, `(m + 2)^2` matrix products -> `sums` `[(m + 2)^2][T][lanes]`,
   modulo 2^32, with transformed weights `[block][(m + 2)^2][step][vector][lane][reduction]`;
3. output transform in place, m^2 accumulators a tile and channel, and the output stage.

Threads share the blocks of tiles, or with few of them the blocks of channels. The codes are
transformed as stored: the zero point is folded into the bias as in all convolutions. A tile that
reaches over the border reads the last row or column again; what it makes of it is not stored.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.numerics.width import WIDTH_8
from fxquant.targets import Target
from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_pack import (
    channel_blocks,
    pack_blocks,
    reduction_ranges,
    slot_channels,
    slot_codes,
)
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import Alternative
from tvm_backend.emit.winograd_loops import WinogradLoops
from tvm_backend.kernel import Kernel, Variant
from tvm_backend.layout import code_width
from tvm_backend.macs import wide_mac_of
from tvm_backend.schedule.winograd import (
    BLOCK_VECTORS,
    WinogradLayer,
    WinogradPlan,
    plan_winograd,
)
from tvm_backend.winograd import SIZES


def winograd_layer(problem: ConvProblem, target: Target) -> WinogradLayer | None:
    """What the cost model needs, or None for convolutions of another kind."""
    shape = (problem.kernel, problem.stride, problem.dilation, problem.groups)
    if shape != ((3, 3), (1, 1), (1, 1), 1) or code_width(problem.source.dtype) is not WIDTH_8:
        return None
    mac = wide_mac_of(target, "uint32").idiom
    return WinogradLayer(
        problem.source, problem.output, target.mac, mac, max(target.vector_bits // 16, 1),
        target.half_width,
    )  # fmt: skip


def winograd_alternatives(
    problem: ConvProblem, stage: OutputStage, weight: np.ndarray, bias: np.ndarray, target: Target
) -> tuple[Alternative, ...]:
    """The kernels of all sizes that are exact for these codes; arguments as `winograd_kernel`."""
    layer = winograd_layer(problem, target)
    if layer is None:
        return ()
    exact = [size for size in SIZES if size.is_exact(weight, *problem.input_bounds)]
    plans = [plan_winograd(layer, size) for size in exact]
    return tuple(
        Alternative(
            f"winograd{plan.size.m}",
            plan.cycles,
            Variant(
                f"{plan}__{layer.mac.name}",
                partial(winograd_kernel, problem, stage, weight, bias, target, plan),
            ),
        )
        for plan in plans
    )


def winograd_kernel(
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    plan: WinogradPlan,
) -> Kernel:
    """The kernel of a convolution.

    Args:
        problem: Storages and geometry: 3x3, stride and dilation 1, one group.
        stage: What happens to the accumulators.
        weight: int8 `[O, C, 3, 3]`.
        bias: `[O]`.
        target: Device.
        plan: Size of the tiles and how many at once.

    Raises:
        UnsupportedError: Sums could exceed what the arithmetic can tell apart.
    """
    if not plan.size.is_exact(weight, *problem.input_bounds):
        raise UnsupportedError(
            f"F({plan.size.m}x{plan.size.m}, 3x3) is not exact for this convolution",
            where=str(problem),
            why="transformed operands exceed int16 or accumulators exceed "
            f"{32 - plan.size.shift} bits",
            remedy="use the direct kernel",
        )
    mac = wide_mac_of(target, "uint32")
    lanes = mac.idiom.lanes
    vectors = -(-problem.output.c // lanes)
    reduction = reduction_ranges(problem, vectors, mac)
    blocks = channel_blocks(vectors, BLOCK_VECTORS, stage)
    channels = slot_channels(blocks, stage, lanes)
    codes = plan.size.transformed(slot_codes(problem, weight, channels, reduction, mac))
    packed = pack_blocks(codes.astype(np.int16), blocks.spans, mac.idiom.reduction)
    folded = fold_zero_point(problem, weight, bias, vectors * lanes)
    constants = [("weights", packed), *stage.constants(folded, blocks.all_chunks())]
    loops = WinogradLoops(problem, stage, mac, plan, blocks, reduction.steps)
    name = kernel_name("conv2d_winograd", problem, stage, plan, mac.idiom)
    return assemble(name, problem, stage, constants, loops.emit, loops.workspace)
