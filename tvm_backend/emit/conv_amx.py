"""Dense convolution (and linear layers) on the matrix tiles of AMX.

A tile of activations is read where it lies: its rows are windows at equal distances, its columns up
to 64 codes of them. Sums start at the bias, a row repeated, and pass through a buffer on the stack
to the output stage, the same as of all convolutions.

    for each block of pixels and output channels (`schedule/amx.py`):
        for some tiles of activations and some vectors of channels, whose sums are kept in tiles:
            for kernel positions and chunks of input channels: load, multiply
            store the sums
        finish every pixel of the block

Blocks have one shape: the last ones start earlier and leave out what is finished already.
Weights lie `[block][group of vectors][kernel position][chunk][vector]`, tile after tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from fxquant.numerics.width import WIDTH_8
from fxquant.targets import Target, TileUnit
from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_columns import geometry_of_columns, has_single_runs, one_column_wide
from tvm_backend.emit.conv_loops import divmod_index
from tvm_backend.emit.conv_pack import (
    ChannelBlocks,
    Reduction,
    channel_blocks,
    slot_channels,
    slot_codes,
)
from tvm_backend.emit.conv_prefetch import prefetch_part
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import Alternative
from tvm_backend.kernel import Abi, Kernel, Variant, outer_loop
from tvm_backend.layout import code_width
from tvm_backend.macs import mac_of, tdpbusd
from tvm_backend.macs.vector import load, loop
from tvm_backend.schedule.amx import SMALL_WEIGHTS, AmxLayer, AmxPlan, plan_amx
from tvm_backend.schedule.tiles import SPREAD_ROWS, Span, split
from tvm_backend.tvm_api import IN_REGISTERS, T

_AHEAD = 1 << 14  # bytes from weights to those asked for with them, where blocks have one share
_TRIED = 24  # blockings worth trying, of hundreds


def amx_alternatives(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
) -> tuple[Alternative, ...]:
    """The kernels of the best blockings, if the target has tiles; arguments as `amx_kernel`."""
    layer = amx_layer(problem, target)
    if layer is None:
        return ()
    return tuple(
        Alternative(
            layer.unit.name,
            plan.cycles,
            Variant(
                f"{plan}__{layer.unit.name}",
                partial(amx_kernel, operator, problem, stage, weight, bias, target, plan),
            ),
        )
        for plan in plan_amx(layer)[:_TRIED]
    )


def amx_layer(problem: ConvProblem, target: Target) -> AmxLayer | None:
    """What the cost model needs, or None for what tiles cannot do."""
    if target.tiles is None or problem.groups > 1:
        return None
    if code_width(problem.source.dtype) is not WIDTH_8:
        return None
    plain = _layer(problem, target.tiles)
    if not has_single_runs(problem):
        return plain
    joined = _layer(geometry_of_columns(problem), target.tiles)
    fewer = joined.taps * joined.chunks < plain.taps * plain.chunks
    return joined if fewer else plain


def _layer(problem: ConvProblem, unit: TileUnit) -> AmxLayer:
    source, output, (sh, sw) = problem.source, problem.output, problem.stride
    pitch, rest = divmod(sh * source.cols, sw)
    least = -(-source.c // unit.reduction)
    most = max(least, source.channels // unit.reduction)  # padding channels have zero weights
    layers = [
        AmxLayer(
            output.n, output.h, output.w, 0 if rest else pitch, sh * source.row_stride,
            -(-output.c // unit.lanes), problem.taps, steps, unit,
        )
        for steps in range(least, most + 1)
    ]  # fmt: skip
    return min(layers, key=lambda layer: layer.chunks)


def amx_kernel(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    target: Target,
    plan: AmxPlan,
) -> Kernel:
    """The kernel of a convolution of one group with 8-bit input.

    Args:
        operator: Operator in the kernel's name.
        problem: Storages and geometry.
        stage: What happens to the accumulators.
        weight: int8 `[O, C, KH, KW]`.
        bias: `[O]`.
        target: A device with tiles.
        plan: The blocking.
    """
    stored, layer = problem, amx_layer(problem, target)
    assert layer is not None
    if layer.taps < problem.taps:
        problem, weight = one_column_wide(problem, weight)
    lanes = layer.unit.lanes
    blocks = channel_blocks(layer.vectors, plan.vectors, stage)
    reduction = Reduction(np.zeros(layer.vectors, np.int64), layer.steps)
    channels = slot_channels(blocks, stage, lanes)
    codes = slot_codes(problem, weight, channels, reduction, mac_of(target.mac))
    folded = fold_zero_point(problem, weight, bias, layer.vectors * lanes)
    constants = [
        ("weights", _packed(codes, blocks.spans, layer, plan)),
        ("tiles", tdpbusd.configuration(plan.size, layer.depth)),
        *stage.constants(folded, blocks.all_chunks()),
    ]
    emitter = _AmxEmitter(problem, stage, layer, plan, blocks)
    name = kernel_name(f"{operator}_tiles", stored, stage, plan, layer.unit)
    return assemble(name, stored, stage, constants, emitter.emit)


def _packed(codes: np.ndarray, spans: Sequence[Span], layer: AmxLayer, plan: AmxPlan) -> np.ndarray:
    """`[vectors, lanes, channels, taps]` -> `[group][taps][chunk][vector][step][lane][code]`."""
    per_step, parts = layer.unit.reduction, []
    for span in spans:
        for block in range(span.count):
            start = span.first + block * span.step
            for first, vectors in _groups(span.step, plan):
                part = codes[start + first : start + first + vectors]
                shape = (vectors, layer.unit.lanes, layer.chunks, -1, per_step, layer.taps)
                parts.append(part.reshape(shape).transpose(5, 2, 0, 3, 1, 4).reshape(-1))
    return np.concatenate(parts)


def _groups(vectors: int, plan: AmxPlan) -> list[tuple[int, int]]:
    """First vector and number of those whose sums are kept together, of a block's vectors."""
    spans = split(vectors, plan.kept[1])
    return [(span.first + i * span.step, span.step) for span in spans for i in range(span.count)]


class _AmxEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        layer: AmxLayer,
        plan: AmxPlan,
        blocks: ChannelBlocks,
    ) -> None:
        self.problem, self.stage, self.layer, self.plan = problem, stage, layer, plan
        self.blocks, self.lanes = blocks, layer.unit.lanes
        self.down, self.across = layer.blocks(plan)
        large = layer.vectors * layer.weight_bytes > SMALL_WEIGHTS
        self.streamed = large and not plan.pixels_first
        self.tile_bytes = layer.depth * layer.unit.lanes  # of weights

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All blocks; threads share rows of blocks, or channels and, if these are few, both."""
        images, spans = self.layer.images, self.blocks.spans
        if self.plan.pixels_first:
            with outer_loop(images * self.down, abi) as index, self._ready(buffers) as sums:
                n, i = divmod_index(index, images, self.down)
                with loop(self.across) as j:
                    for span in spans:
                        with loop(span.count) as block:
                            self._block(buffers, sums, n, i, j, span, block)
            return
        for span in spans:
            shared = self.down if span.count < SPREAD_ROWS else 1
            with (
                outer_loop(images * span.count * shared, abi) as index,
                self._ready(buffers) as sums,
            ):
                n, rest = divmod_index(index, images, span.count * shared)
                block, row = divmod_index(rest, span.count, shared)
                with loop(self.down // shared) as i, loop(self.across) as j:
                    self._block(buffers, sums, n, row + i, j, span, block)

    @contextmanager
    def _ready(self, buffers: dict[str, Any]) -> Iterator[Any]:
        """Tiles of this thread in shape, and its buffer of sums `[windows][vectors][lanes]`."""
        size = self.plan.stored * self.plan.vectors * self.lanes
        with tdpbusd.configured(buffers["tiles"]):
            yield T.alloc_buffer((size,), "int32", annotations=IN_REGISTERS)

    def _block(
        self, buffers: dict[str, Any], sums: Any, n: Any, i: Any, j: Any, span: Span, block: Any
    ) -> None:
        """Row i and column j of blocks, of a block of channels."""
        problem, plan, layer = self.problem, self.plan, self.layer
        h, above = _overlapping(i, plan.rows, layer.rows)
        w, before = _overlapping(j, plan.cols, layer.cols)
        row = h * problem.stride[0] - problem.padding[0]
        col = w * problem.stride[1] - problem.padding[2]
        origin = T.Bind(problem.source.offset(n, row, col, 0))
        vector = T.Bind(span.first + block * span.step)
        tiles, kept = plan.places, plan.kept[0]
        together = range(0, len(tiles), kept)
        shares = self.down * self.across * len(together)
        for first, vectors in _groups(span.step, plan):
            for index, start in enumerate(together):
                places = tiles[start : start + kept]
                ahead = (i * self.across + j) * len(together) + index, shares
                self._region(
                    buffers, sums, origin, vector + first, span.step, first, vectors, places, ahead
                )
        slot = T.Bind(vector * self.lanes)
        with _from(above, plan.rows) as r, _from(before, plan.cols) as c:
            at = T.Bind((r * plan.line + c) * (span.step * self.lanes))
            for first, count in self.blocks.chunks_of(span.step):
                accs = [
                    T.Bind(load(sums, at + (first + v) * self.lanes, self.lanes))
                    for v in range(count)
                ]
                self.stage.finish(buffers, accs, slot + first * self.lanes, (n, h + r, w + c))

    def _region(
        self, buffers: dict[str, Any], sums: Any, origin: Any, vector: Any, stored: int,
        column: int, vectors: int, places: Sequence[tuple[int, int]], ahead: tuple[Any, int],
    ) -> None:  # fmt: skip
        """Sums of some tiles of activations and some vectors.

        Args:
            buffers: Parameters.
            sums: Where the sums go.
            origin: First element of the block's first window.
            vector: First vector of channels.
            stored: Vectors of the buffer.
            column: Place of the first vector there.
            vectors: How many.
            places: Run and first window of each tile.
            ahead: See `_ask_ahead`.
        """
        problem, layer, lanes = self.problem, self.layer, self.lanes
        (kh, kw), (dh, dw) = problem.kernel, problem.dilation
        kept = [[m * vectors + v for v in range(vectors)] for m in range(len(places))]
        for m in range(len(places)):
            for v in range(vectors):
                tdpbusd.load(kept[m][v], buffers["bias"], (vector + v) * lanes, 0)
        weights = T.Bind(vector * layer.weight_bytes)
        with loop(kh) as row, loop(kw) as col, loop(layer.chunks) as chunk:
            x = origin + row * (dh * problem.source.row_stride)
            x = T.Bind(x + col * (dw * problem.source.channels) + chunk * layer.depth)
            step = (row * kw + col) * layer.chunks + chunk
            w = T.Bind(weights + step * (vectors * self.tile_bytes))
            if self.streamed:
                self._ask_ahead(buffers["weights"], w, vectors, stored, ahead)
            self._products(buffers, x, w, places, kept)
        for m, (run, start) in enumerate(places):
            for v in range(vectors):
                at = ((run * self.plan.line + start) * stored + column + v) * lanes
                tdpbusd.store(kept[m][v], sums, at, stored * tdpbusd.ROW_BYTES)

    def _ask_ahead(
        self, weights: Any, w: Any, vectors: int, stored: int, ahead: tuple[Any, int]
    ) -> None:
        """Prefetch this region's share of the next block; or what comes soon, if all is one share.

        Args:
            weights: Buffer.
            w: First weight of a chunk.
            vectors: Vectors of the chunk.
            stored: Vectors of a block.
            ahead: Number of the region among those that read the same weights, and how many do.
        """
        distance = stored * self.layer.weight_bytes if ahead[1] > 1 else _AHEAD
        prefetch_part(weights, ahead, w + distance, vectors * self.tile_bytes)

    def _products(
        self, buffers: dict[str, Any], x: Any, w: Any, places: Sequence[tuple[int, int]],
        kept: Sequence[Sequence[int]],
    ) -> None:  # fmt: skip
        """One chunk: whatever is fewer, tiles of activations or of weights, stays loaded."""
        source, (down, right) = self.problem.source, self.problem.stride

        def load_pixels(m: int) -> int:
            tile = tdpbusd.ACTIVATIONS[m % 2]
            run, start = places[m]
            at = run * (down * source.row_stride) + start * (right * source.channels)
            tdpbusd.load(tile, buffers["x"], x + at, right * source.channels)
            return tile

        def load_weights(v: int) -> int:
            tile = tdpbusd.WEIGHTS[v % 2]
            tdpbusd.load(tile, buffers["weights"], w + v * self.tile_bytes, tdpbusd.ROW_BYTES)
            return tile

        if len(places) <= len(tdpbusd.ACTIVATIONS):
            pixels = [load_pixels(m) for m in range(len(places))]
            for v in range(len(kept[0])):
                codes = load_weights(v)
                for m, tile in enumerate(pixels):
                    tdpbusd.multiply_accumulate(kept[m][v], tile, codes)
            return
        codes = load_weights(0)
        for m in range(len(places)):
            tdpbusd.multiply_accumulate(kept[m][0], load_pixels(m), codes)


def _overlapping(index: Any, step: int, extent: int) -> tuple[Any, Any]:
    """Start of a block inside `extent`, and how much of it belongs to the one before."""
    if extent % step == 0:
        return T.Bind(index * step) if extent > step else 0, 0
    start = T.Bind(T.min(index * step, extent - step))
    return start, T.Bind(index * step - start)


@contextmanager
def _from(first: Any, extent: int) -> Iterator[Any]:
    """A serial loop from `first` to `extent`."""
    if isinstance(first, int) and first == 0:
        with loop(extent) as index:
            yield index
    else:
        with T.serial(extent - first) as index:
            yield first + index
