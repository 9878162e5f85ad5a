"""The loops of a convolution as an implicit matrix product.

For each register tile of M pixels x NB vectors of output channels: the accumulators start at
the bias, loops over kernel rows, columns and groups of input channels multiply activations
(broadcast) by packed weights, and the output stage finishes the accumulators. Idioms that multiply
matrices do so for groups of pixels (`macs/pixels.py`). The input is read in place: the halo makes
padding ordinary memory, so a pixel's window is base + constant.
"""

from __future__ import annotations

from typing import Any

from tvm_backend.emit.conv_loops import TileAt, Window, visit_tiles
from tvm_backend.emit.conv_pack import (
    ChannelBlocks,
    Reduction,
)
from tvm_backend.emit.conv_prefetch import is_streamed, prefetch_share
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_products import Activations, WeightVectors, multiply
from tvm_backend.emit.conv_staging import Staging, is_staged, visit_staged
from tvm_backend.emit.conv_weights import WeightForm
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.kernel import Abi
from tvm_backend.macs import Mac
from tvm_backend.macs.pixels import accumulator_type, load_group, pixel_groups, rows, spread
from tvm_backend.macs.vector import load, loop, registers
from tvm_backend.schedule.tiles import Tile, holds_activations
from tvm_backend.tvm_api import T


class GemmEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        mac: Mac,
        tile: Tile,
        form: WeightForm,
        blocks: ChannelBlocks,
        reduction: Reduction,
        has_rest: bool,
    ) -> None:
        self.problem, self.stage, self.mac = problem, stage, mac
        self.tile, self.form, self.blocks, self.reduction = tile, form, blocks, reduction
        self.has_rest = has_rest
        self.lanes, self.per_step = mac.idiom.lanes, mac.idiom.reduction
        self.per_vector = self.lanes * self.per_step
        vectors = sum(span.count * span.step for span in blocks.spans)
        weights = vectors * self.per_vector * reduction.steps * problem.taps
        streamed = is_streamed(mac.idiom, tile, problem.output, weights)
        self.streamed = streamed and form.density == 1

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All tiles."""

        def staged(at: TileAt, window: Window) -> None:
            self._emit_tile(buffers, at, window)

        def direct(at: TileAt) -> None:
            problem, source = self.problem, self.problem.source
            h = at.h * problem.stride[0] - problem.padding[0]
            w = at.w * problem.stride[1] - problem.padding[2]
            origin = source.offset(at.n, h, w, 0)
            staged(
                at,
                Window(buffers["x"], origin, source.row_stride, source.channels, problem.stride),
            )

        spans = self.blocks.spans
        if is_staged(self.problem, self.mac):
            visit_staged(Staging(self.problem, self.tile), spans, abi, buffers["x"], staged)
        else:
            visit_tiles(self.problem.output, self.tile, spans, abi, direct)

    def _emit_tile(self, buffers: dict[str, Any], at: TileAt, window: Window) -> None:
        vectors, groups = at.span.step, pixel_groups(at.pixels, self.mac.idiom)
        acc = registers(len(groups) * vectors, accumulator_type(self.mac.idiom))
        slot = T.Bind(at.vector * self.lanes)
        for v in range(vectors):
            bias = load(buffers["bias"], slot + v * self.lanes, self.lanes)
            start = T.Bind(spread(self.mac, bias))
            for m in range(len(groups)):
                T.buffer_store(acc, start, [m * vectors + v])
        self._reduce(buffers, at, window, acc)
        for m, pixels in enumerate(groups):
            finished = [rows(self.mac, acc[m * vectors + v]) for v in range(vectors)]
            for p, (i, j) in enumerate(pixels):
                for first, size in self.blocks.chunks_of(vectors):
                    accs = [vector[p] for vector in finished[first : first + size]]
                    position = (at.n, at.h + i, at.w + j)
                    self.stage.finish(buffers, accs, slot + first * self.lanes, position)

    def _reduce(self, buffers: dict[str, Any], at: TileAt, window: Window, acc: Any) -> None:
        """Loops over kernel rows, columns and reduction steps."""
        (kh, kw), (dh, dw) = self.problem.kernel, self.problem.dilation
        starts = self._range_starts(buffers, at)
        steps, per_step = self.reduction.steps, self.form.stored(at.span.step) * self.per_vector
        if self._contiguous(window):
            steps, kw = steps * kw, 1
        # Where unrolled steps would meet the words of the next pixels, LLVM keeps these in
        # registers it does not have: a step (or chain) at a time then, and rows innermost.
        size = max(self.mac.idiom.chain, 1) if kw == 1 and self._overlapping(window) else steps
        weights = self._weight_base(at)
        with loop(steps // size) as k, loop(kh) as row, loop(kw) as col:
            x = window.origin + row * (dh * window.row_stride) + col * (dw * window.channels)
            w = T.Bind(weights + ((row * kw + col) * steps + k * size) * per_step)
            x = T.Bind(x + k * (size * self.per_step))
            self._reduce_run(buffers["weights"], at, window, acc, x, w, starts, size)
        if self.has_rest:
            self._reduce_rest(buffers, at, window, acc)

    def _contiguous(self, window: Window) -> bool:
        """Whether the steps of a kernel row follow one another, in memory and in chains."""
        steps, chain = self.reduction.steps, max(self.mac.idiom.chain, 1)
        whole = steps * self.per_step == window.channels and steps % chain == 0
        return whole and self.problem.dilation[1] == 1 and self.problem.groups == 1

    def _overlapping(self, window: Window) -> bool:
        """Whether pixels of a tile load words of their neighbours within unrolled steps."""
        distance = window.stride[1] * window.channels
        near = distance < self.mac.unroll * self.per_step
        wide = self.problem.kernel[1] * window.channels > distance
        return near and wide and self.tile.tw > 1 and not holds_activations(self.mac.idiom)

    def _reduce_rest(self, buffers: dict[str, Any], at: TileAt, window: Window, acc: Any) -> None:
        """The extra steps of this block: as many as the data say."""
        block = at.span.first // self.tile.vectors + at.block
        first = T.Bind(buffers["rest_first"][block])
        count = T.Bind(buffers["rest_first"][block + 1] - first)
        per_step = self.tile.vectors * self.per_vector
        start = T.Bind(window.origin)
        with T.serial(count) as k:
            step = first + k
            x = T.Bind(start + buffers["rest_at"][step])
            w = T.Bind(step * per_step)
            self._steps(buffers["rest_weights"], at, window, acc, x, w, [0], 1)

    def _weight_base(self, at: TileAt) -> Any:
        """First weight of a block; all blocks before it have `tile.vectors` vectors."""
        vectors = self.tile.vectors
        first = at.span.first // vectors * self.form.stored(vectors)
        first = first + at.block * self.form.stored(at.span.step)
        return T.Bind(first * (self.problem.taps * self.reduction.steps * self.per_vector))

    def _range_starts(self, buffers: dict[str, Any], at: TileAt) -> list[Any]:
        """First input channel of each vector; a single 0 if all reduce over all channels."""
        if self.problem.groups == 1:
            return [0]
        return [T.Bind(buffers["starts"][at.vector + v]) for v in range(at.span.step)]

    def _reduce_run(
        self, weights: Any, at: TileAt, window: Window, acc: Any, x: Any, w: Any,
        starts: list[Any], steps: int,
    ) -> None:  # fmt: skip
        """Reduction steps on contiguous activations, `mac.unroll` at a time."""
        per_step = self.form.stored(at.span.step) * self.per_vector
        whole = steps // self.mac.unroll
        if whole:
            with loop(whole) as i:
                first = i * self.mac.unroll
                self._steps(
                    weights, at, window, acc, x + first * self.per_step, w + first * per_step,
                    starts, self.mac.unroll,
                )  # fmt: skip
        for k in range(whole * self.mac.unroll, steps):
            self._steps(
                weights, at, window, acc, x + k * self.per_step, w + k * per_step, starts, 1
            )

    def _steps(
        self, buffer: Any, at: TileAt, window: Window, acc: Any, x: Any, w: Any,
        starts: list[Any], count: int,
    ) -> None:  # fmt: skip
        """`count` reduction steps of all pixels and vectors of the tile."""
        sh, sw = window.stride
        vectors, stored = at.span.step, self.form.stored(at.span.step)
        tiles = [
            [
                load_group(
                    self.mac,
                    window.buffer,
                    [
                        x + start + (i * sh * window.row_stride + j * sw * window.channels)
                        for i, j in pixels
                    ],
                    count,
                )
                for start in starts
            ]
            for pixels in pixel_groups(at.pixels, self.mac.idiom)
        ]
        nbytes = count * stored * self.per_vector
        self.form.prefetch(buffer, w, nbytes)
        if self.streamed:
            block = self.reduction.steps * self.problem.taps * stored * self.per_vector
            prefetch_share(buffer, at, self.tile, self.problem.output, w + block, nbytes)
        activations = Activations(tiles)
        weights = WeightVectors(self.mac, self.form, buffer, w, vectors)
        size = max(self.mac.idiom.chain, 1)
        for first in range(0, count, size):
            chain = range(first, min(first + size, count))
            multiply(self.mac, acc, activations, weights, chain)
