"""Convolution by Winograd's minimal filtering: 3x3 of stride 1, and 7x7 of stride 2 (the stem).

The arithmetic, and why it is exact, is in `tvm_backend/winograd.py`; how a stride becomes one of 1,
in `conv_plane.py`.

Tiles of outputs, counted through the whole batch, are done in blocks. For a block of T tiles and
P = (m + r - 1)^2 points:

1. input transform: stored codes -> `v` int16 `[P][T][channels]`;
2. for each block of output channels, P matrix products -> `sums` `[P][T][lanes]`, modulo 2^32, with
   transformed weights `[block][P][step][vector][lane][reduction]`;
3. output transform in place, m^2 accumulators a tile and channel, and the output stage.

Threads share the blocks of tiles, or with few of them the blocks of channels. The codes are
transformed as stored: the zero point is folded into the bias as in all convolutions. A tile that
reaches over the border reads the last row or column again; what it makes of it is not stored.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.targets import Target
from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_pack import (
    channel_blocks,
    dense_slot_codes,
    pack_blocks,
    slot_channels,
)
from tvm_backend.emit.conv_plane import Plane, plane_of
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import Alternative
from tvm_backend.emit.winograd_loops import WinogradLoops
from tvm_backend.kernel import Kernel, Variant
from tvm_backend.macs import wide_mac_of
from tvm_backend.schedule.winograd import (
    BLOCK_VECTORS,
    WinogradLayer,
    WinogradPlan,
    plan_winograd,
)
from tvm_backend.winograd import SIZES


def winograd_layer(plane: Plane, target: Target) -> WinogradLayer:
    """What the cost model needs."""
    mac = wide_mac_of(target, "uint32").idiom
    lanes = max(target.vector_bits // 16, 1)
    return WinogradLayer(
        plane.problem.output, plane.depth, plane.channels, plane.lanes(lanes), target.mac, mac,
        lanes, target.half_width,
    )  # fmt: skip


def winograd_alternatives(
    problem: ConvProblem, stage: OutputStage, weight: np.ndarray, bias: np.ndarray, target: Target
) -> tuple[Alternative, ...]:
    """The kernels of all sizes that are exact for these codes; arguments as `winograd_kernel`."""
    plane = plane_of(problem)
    if plane is None:
        return ()
    layer = winograd_layer(plane, target)
    weights, bounds = plane.weights(weight), problem.input_bounds
    exact = [s for s in SIZES if s.window == plane.window and s.is_exact(weights, *bounds)]
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
        problem: Storages and geometry; it has a plane.
        stage: What happens to the accumulators.
        weight: int8 `[O, C, KH, KW]`.
        bias: `[O]`.
        target: Device.
        plan: Size of the tiles and how many at once.

    Raises:
        UnsupportedError: Sums could exceed what the arithmetic can tell apart.
    """
    plane, size = plane_of(problem), plan.size
    if plane is None or plane.window != size.window:
        raise _unsupported(problem, f"{size} is for other windows", "or strides, or groups")
    weights = plane.weights(weight)
    if not size.is_exact(weights, *problem.input_bounds):
        raise _unsupported(
            problem, f"{size} is not exact for this convolution",
            f"transformed operands exceed int16 or accumulators exceed {32 - size.shift} bits",
        )  # fmt: skip
    mac = wide_mac_of(target, "uint32")
    lanes, reduction = mac.idiom.lanes, mac.idiom.reduction
    vectors, steps = -(-problem.output.c // lanes), -(-plane.depth // reduction)
    blocks = channel_blocks(vectors, BLOCK_VECTORS, stage)
    channels = slot_channels(blocks, stage, lanes)
    taps = weights.reshape(*weights.shape[:2], -1)
    codes = size.transformed(dense_slot_codes(taps, channels, steps * reduction))
    packed = pack_blocks(codes.astype(np.int16), blocks.spans, reduction)
    folded = fold_zero_point(problem, weight, bias, vectors * lanes)
    constants = [("weights", packed), *stage.constants(folded, blocks.all_chunks())]
    loops = WinogradLoops(plane, stage, mac, plan, blocks, steps)
    name = kernel_name("conv2d_winograd", problem, stage, plan, mac.idiom)
    return assemble(name, problem, stage, constants, loops.emit, loops.workspace)


def _unsupported(problem: ConvProblem, what: str, why: str) -> UnsupportedError:
    return UnsupportedError(what, where=str(problem), why=why, remedy="use the direct kernel")
