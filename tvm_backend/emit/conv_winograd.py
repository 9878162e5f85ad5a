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

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.numerics.width import WIDTH_8
from fxquant.targets import Target
from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_pack import (
    ChannelBlocks,
    channel_blocks,
    pack_blocks,
    reduction_ranges,
    slot_channels,
    slot_codes,
)
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import Alternative
from tvm_backend.kernel import Abi, Kernel, Variant, outer_loop
from tvm_backend.layout import Flat, code_width
from tvm_backend.macs import Mac, wide_mac_of
from tvm_backend.macs.vector import constant, load, loop, registers, store
from tvm_backend.schedule.tiles import split
from tvm_backend.schedule.winograd import (
    BLOCK_VECTORS,
    WinogradLayer,
    WinogradPlan,
    plan_winograd,
)
from tvm_backend.tvm_api import T
from tvm_backend.winograd import SIZES, both_axes


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
    emitter = _WinogradEmitter(problem, stage, mac, plan, blocks, reduction.steps)
    name = kernel_name("conv2d_winograd", problem, stage, plan, mac.idiom)
    return assemble(name, problem, stage, constants, emitter.emit, emitter.workspace)


class _WinogradEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        mac: Mac,
        plan: WinogradPlan,
        blocks: ChannelBlocks,
        steps: int,
    ) -> None:
        self.problem, self.stage, self.mac, self.plan = problem, stage, mac, plan
        self.blocks, self.steps = blocks, steps
        self.size, self.lanes = plan.size, mac.idiom.lanes
        self.points = self.size.size**2
        self.rows = -(-problem.output.h // self.size.m)
        self.cols = -(-problem.output.w // self.size.m)
        self.tiles = problem.output.n * self.rows * self.cols
        widest = max(span.step for span in blocks.spans)
        self.workspace = [
            ("v", Flat((self.points * plan.tiles * problem.source.channels,), "int16")),
            ("sums", Flat((self.points * plan.tiles * widest * self.lanes,), "uint32")),
        ]

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All blocks of tiles."""
        blocks = -(-self.tiles // self.plan.tiles)
        if self.plan.spread_tiles:
            with outer_loop(blocks, abi) as block:
                memory = self._allocated(buffers, abi, "v", "sums")
                self._block(memory, T.Bind(block * self.plan.tiles), Abi.BARE)
            return
        memory = self._allocated(buffers, abi, "v")
        with loop(blocks) as block:
            self._block(memory, T.Bind(block * self.plan.tiles), abi)

    def _allocated(self, buffers: dict[str, Any], abi: Abi, *names: str) -> dict[str, Any]:
        """The buffers with those of the workspace that are not parameters."""
        sizes = dict(self.workspace)
        own = {} if abi is Abi.BARE else {
            name: T.alloc_buffer(sizes[name].shape, sizes[name].dtype) for name in names
        }  # fmt: skip
        return {**buffers, **own}

    def _block(self, buffers: dict[str, Any], first: Any, abi: Abi) -> None:
        """One block of tiles.

        Args:
            buffers: Parameters and `v`; `sums` too, unless threads share the channels.
            first: First tile.
            abi: Whether threads share the channels of the block.
        """
        with outer_loop(self.plan.tiles, abi) as t:
            self._transform_input(buffers, t, T.Bind(T.min(first + t, self.tiles - 1)))
        for span in self.blocks.spans:
            with outer_loop(span.count, abi) as index:
                inner = abi if "sums" not in buffers else Abi.BARE
                memory = self._allocated(buffers, inner, "sums")
                vector = T.Bind(span.first + index * span.step)
                self._multiply(memory, vector, span.step)
                with T.serial(T.min(self.plan.tiles, self.tiles - first)) as t:
                    self._finish(memory, t, first + t, vector, span.step)

    def _place(self, tile: Any) -> tuple[Any, Any, Any]:
        """Image, first row and first column of a tile's outputs."""
        m, per_image = self.size.m, self.rows * self.cols
        inside = T.Bind(tile % per_image) if self.problem.output.n > 1 else tile
        n = T.Bind(tile // per_image) if self.problem.output.n > 1 else 0
        return n, T.Bind(inside // self.cols * m), T.Bind(inside % self.cols * m)

    def _transform_input(self, buffers: dict[str, Any], t: Any, tile: Any) -> None:
        """All channels of one tile."""
        source, size = self.problem.source, self.size
        n, h, w = self._place(tile)
        top, left = self.problem.padding[0], self.problem.padding[2]
        rows = [
            T.Bind(T.min(h + (r - top), source.h + source.halo[1] - 1)) for r in range(size.size)
        ]
        cols = [
            T.Bind(T.min(w + (c - left), source.w + source.halo[3] - 1)) for c in range(size.size)
        ]
        corners = [[T.Bind(source.offset(n, row, col, 0)) for col in cols] for row in rows]
        lanes = np.gcd(self.plan.transform_lanes, source.channels)
        with loop(source.channels // lanes) as chunk:
            x = [
                [
                    T.Bind(T.cast(load(buffers["x"], at + chunk * lanes, lanes), f"int16x{lanes}"))
                    for at in row
                ]
                for row in corners
            ]
            start = T.Bind(t * source.channels + chunk * lanes)
            v = both_axes(size.input_line, x, T.Bind)
            for point, value in enumerate(value for row in v for value in row):
                place = start + point * (self.plan.tiles * source.channels)
                store(buffers["v"], place, value, lanes)

    def _multiply(self, buffers: dict[str, Any], vector: Any, vectors: int) -> None:
        """The matrix products of one block of channels."""
        per_point = self.steps * vectors * self.lanes * self.mac.idiom.reduction
        weights = T.Bind(
            vector * (self.points * self.steps * self.lanes * self.mac.idiom.reduction)
        )
        with loop(self.points) as point:
            w = T.Bind(weights + point * per_point)
            for group in split(self.plan.tiles, self.plan.group):
                with loop(group.count) as index:
                    t = T.Bind(group.first + index * group.step)
                    for part in split(vectors, self.plan.vectors):
                        with loop(part.count) as k:
                            v = part.first + k * part.step
                            self._register_tile(
                                buffers, point, t, group.step, w, vectors, v, part.step
                            )

    def _register_tile(
        self, buffers: dict[str, Any], point: Any, t: Any, tiles: int, w: Any, vectors: int,
        v: Any, count: int,
    ) -> None:  # fmt: skip
        """Sums of some tiles and of some vectors of a block, in registers."""
        idiom, channels = self.mac.idiom, self.problem.source.channels
        acc = registers(tiles * count, f"uint32x{self.lanes}")
        for i in range(tiles * count):
            T.buffer_store(acc, constant(0, "uint32", self.lanes), [i])
        x = T.Bind((point * self.plan.tiles + t) * channels)
        per_vector = self.lanes * idiom.reduction

        def steps(first: Any, unroll: int) -> None:
            rows = [
                self.mac.load_activations(
                    buffers["v"], x + i * channels + first * idiom.reduction, unroll
                )
                for i in range(tiles)
            ]
            for k in range(unroll):
                start = w + ((first + k) * vectors + v) * per_vector
                codes = [
                    T.Bind(self.mac.load_weights(buffers["weights"], start + c * per_vector))
                    for c in range(count)
                ]
                for i in range(tiles):
                    a = T.Bind(rows[i][k])
                    for c in range(count):
                        at = i * count + c
                        value = self.mac.multiply_accumulate(acc[at], [a], [codes[c]])
                        T.buffer_store(acc, value, [at])

        unroll = self.mac.unroll
        if self.steps // unroll:
            with loop(self.steps // unroll) as i:
                steps(i * unroll, unroll)
        for k in range(self.steps // unroll * unroll, self.steps):
            steps(k, 1)
        for i in range(tiles):
            for c in range(count):
                place = ((point * self.plan.tiles + t + i) * vectors + v + c) * self.lanes
                store(buffers["sums"], place, acc[i * count + c], self.lanes)

    def _finish(
        self, buffers: dict[str, Any], t: Any, tile: Any, vector: Any, vectors: int
    ) -> None:
        """Output transform and output stage of a tile."""
        output, size, lanes = self.problem.output, self.size, self.lanes
        per_point = self.plan.tiles * vectors * lanes
        start = T.Bind(t * (vectors * lanes))
        with loop(vectors) as v:
            at = T.Bind(start + v * lanes)
            grid = [
                [
                    T.Bind(load(buffers["sums"], at + (i * size.size + j) * per_point, lanes))
                    for j in range(size.size)
                ]
                for i in range(size.size)
            ]
            y = both_axes(size.output_line, grid, T.Bind)
            for point, value in enumerate(value for row in y for value in row):
                store(buffers["sums"], at + point * per_point, value, lanes)
        n, h, w = self._place(T.Bind(tile))
        slot = T.Bind(vector * lanes)
        with self._within(output.h, h) as i, self._within(output.w, w) as j:
            place = T.Bind(start + (i * size.m + j) * per_point)
            for first, count in self.blocks.chunks_of(vectors):
                accs = [self._accumulator(buffers, place, slot, first + k) for k in range(count)]
                self.stage.finish(buffers, accs, slot + first * lanes, (n, h + i, w + j))

    @contextmanager
    def _within(self, extent: int, start: Any) -> Iterator[Any]:
        """Loop over the rows or columns of a tile that the output has."""
        m = self.size.m
        with T.serial(T.min(m, extent - start) if extent % m else m) as index:
            yield index

    def _accumulator(self, buffers: dict[str, Any], place: Any, slot: Any, v: int) -> Any:
        """Transformed sums -> accumulators with the bias."""
        size, lanes = self.size, self.lanes
        value = load(buffers["sums"], place + v * lanes, lanes)
        if size.odd > 1:
            value = value * constant(size.inverse, "uint32", lanes)
        value = T.reinterpret(f"int32x{lanes}", value)
        value = T.shift_right(value, constant(size.shift, "int32", lanes))
        return T.Bind(value + load(buffers["bias"], slot + v * lanes, lanes))
