"""2-D convolution as an implicit matrix product (dense and grouped).

For each register tile of M pixels x NB vectors of output channels: the accumulators start at
the bias, loops over kernel rows, columns and groups of input channels multiply activations
(broadcast) by packed weights, and the output stage finishes the accumulators. The input is read
in place: the halo makes padding ordinary memory, so a pixel's window is base + constant.

Zero points: `sum (x - zp) * w + bias == sum x * w + (bias - zp * sum w)`, folded when packing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_loops import TileAt, visit_tiles
from tvm_backend.emit.conv_pack import (
    ChannelBlocks,
    Reduction,
    channel_blocks,
    pack_weights,
    reduction_ranges,
    slot_channels,
)
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.macs import Mac
from tvm_backend.macs.vector import load, loop, registers
from tvm_backend.schedule.tiles import Tile, choose_tile
from tvm_backend.tvm_api import T


def gemm_kernel(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    mac: Mac,
    tile: Tile | None = None,
) -> Kernel:
    """The kernel of a convolution with a given output stage.

    Args:
        operator: Operator in the kernel's name.
        problem: Storages and geometry.
        stage: What happens to the accumulators.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: `[O]`.
        mac: Multiplies and accumulates.
        tile: Register tile; by default chosen by the cost model.
    """
    lanes = mac.idiom.lanes
    vectors = -(-problem.output.c // lanes)
    reduction = reduction_ranges(problem, vectors, mac)
    if tile is None:
        output, steps = problem.output, reduction.steps * problem.taps
        shared = problem.groups == 1
        tile = choose_tile(mac.idiom, output.h, output.w, vectors, steps, shared)
    blocks = channel_blocks(vectors, tile.vectors, stage)
    channels = slot_channels(blocks, stage, lanes)
    packed = pack_weights(problem, weight, blocks, channels, reduction, mac)
    constants = [("weights", packed)]
    if problem.groups > 1:
        constants.append(("starts", reduction.starts.astype(np.int32)))
    folded = fold_zero_point(problem, weight, bias, vectors * lanes)
    constants += stage.constants(folded, blocks.all_chunks())
    emitter = _GemmEmitter(problem, stage, mac, tile, blocks, reduction)
    name = kernel_name(operator, problem, stage, tile, mac.idiom)
    return assemble(name, problem, stage, constants, emitter.emit)


class _GemmEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        mac: Mac,
        tile: Tile,
        blocks: ChannelBlocks,
        reduction: Reduction,
    ) -> None:
        self.problem, self.stage, self.mac = problem, stage, mac
        self.tile, self.blocks, self.reduction = tile, blocks, reduction
        self.lanes, self.per_step = mac.idiom.lanes, mac.idiom.reduction

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All tiles."""

        def body(at: TileAt) -> None:
            self._emit_tile(buffers, at)

        visit_tiles(self.problem.output, self.tile, self.blocks.spans, abi, body)

    def _emit_tile(self, buffers: dict[str, Any], at: TileAt) -> None:
        vectors, pixels = at.span.step, at.pixels
        acc = registers(len(pixels) * vectors, f"{self.mac.idiom.accumulator}x{self.lanes}")
        slot = T.Bind(at.vector * self.lanes)
        for v in range(vectors):
            bias = T.Bind(load(buffers["bias"], slot + v * self.lanes, self.lanes))
            for m in range(len(pixels)):
                T.buffer_store(acc, bias, [m * vectors + v])
        self._reduce(buffers, at, acc)
        for m, (i, j) in enumerate(pixels):
            for first, size in self.blocks.chunks_of(vectors):
                accs = [acc[m * vectors + first + k] for k in range(size)]
                position = (at.n, at.h + i, at.w + j)
                self.stage.finish(buffers, accs, slot + first * self.lanes, position)

    def _reduce(self, buffers: dict[str, Any], at: TileAt, acc: Any) -> None:
        """Loops over kernel rows, columns and reduction steps."""
        problem, source = self.problem, self.problem.source
        (kh, kw), (sh, sw), (dh, dw) = problem.kernel, problem.stride, problem.dilation
        origin = source.offset(
            at.n, at.h * sh - problem.padding[0], at.w * sw - problem.padding[2], 0
        )
        starts = self._range_starts(buffers, at)
        steps, per_tap = self.reduction.steps, at.span.step * self.lanes * self.per_step
        weights = self._weight_base(at)
        with loop(kh) as row, loop(kw) as col:
            x = T.Bind(origin + row * (dh * source.row_stride) + col * (dw * source.channels))
            w = T.Bind(weights + (row * kw + col) * (steps * per_tap))
            self._reduce_channels(buffers, at, acc, x, w, starts)

    def _weight_base(self, at: TileAt) -> Any:
        per_vector = self.problem.taps * self.reduction.steps * self.lanes * self.per_step
        return T.Bind(at.vector * per_vector)

    def _range_starts(self, buffers: dict[str, Any], at: TileAt) -> list[Any]:
        """First input channel of each vector; a single 0 if all reduce over all channels."""
        if self.problem.groups == 1:
            return [0]
        return [T.Bind(buffers["starts"][at.vector + v]) for v in range(at.span.step)]

    def _reduce_channels(
        self, buffers: dict[str, Any], at: TileAt, acc: Any, x: Any, w: Any, starts: list[Any]
    ) -> None:
        """All reduction steps of one kernel position, `mac.unroll` at a time."""
        per_tap = at.span.step * self.lanes * self.per_step
        whole = self.reduction.steps // self.mac.unroll
        if whole:
            with loop(whole) as i:
                first = i * self.mac.unroll
                self._steps(
                    buffers, at, acc, x + first * self.per_step, w + first * per_tap,
                    starts, self.mac.unroll,
                )  # fmt: skip
        for k in range(whole * self.mac.unroll, self.reduction.steps):
            self._steps(buffers, at, acc, x + k * self.per_step, w + k * per_tap, starts, 1)

    def _steps(
        self, buffers: dict[str, Any], at: TileAt, acc: Any, x: Any, w: Any, starts: list[Any],
        count: int,
    ) -> None:  # fmt: skip
        """`count` reduction steps of all pixels and vectors of the tile."""
        source, (sh, sw) = self.problem.source, self.problem.stride
        vectors, per_vector = at.span.step, self.lanes * self.per_step
        tiles = [
            [
                self.mac.load_activations(
                    buffers["x"],
                    x + start + (i * sh * source.row_stride + j * sw * source.channels),
                    count,
                )
                for start in starts
            ]
            for i, j in at.pixels
        ]
        for k in range(count):
            at_step = w + k * vectors * per_vector
            weights = [
                T.Bind(self.mac.load_weights(buffers["weights"], at_step + v * per_vector))
                for v in range(vectors)
            ]
            for m, activations in enumerate(tiles):
                shared = [T.Bind(steps[k]) for steps in activations]
                for v in range(vectors):
                    a = shared[v if len(shared) > 1 else 0]
                    index = m * vectors + v
                    value = self.mac.multiply_accumulate(acc[index], a, weights[v])
                    T.buffer_store(acc, value, [index])
