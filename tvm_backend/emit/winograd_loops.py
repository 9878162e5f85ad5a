"""The loops of a Winograd kernel: blocks of tiles, blocks of channels, matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm_backend.emit.conv_pack import ChannelBlocks
from tvm_backend.emit.conv_plane import Plane
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.winograd_transforms import Transforms
from tvm_backend.kernel import Abi, outer_loop
from tvm_backend.layout import Flat
from tvm_backend.macs import Mac
from tvm_backend.macs.vector import constant, loop, registers, store
from tvm_backend.schedule.tiles import split
from tvm_backend.schedule.winograd import WinogradPlan
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class _RegisterTile:
    """Sums that are made in registers.

    Attributes:
        tiles: Tiles of outputs.
        vectors: Vectors of output channels.
        x: Its first activation in `v`; tiles follow each other there.
        w: Its first weight.
        w_step: Weights of a reduction step.
        y: Its first sum.
        y_step: Sums of a tile.
    """

    tiles: int
    vectors: int
    x: Any
    w: Any
    w_step: int
    y: Any
    y_step: int


class WinogradLoops:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        plane: Plane,
        stage: OutputStage,
        mac: Mac,
        plan: WinogradPlan,
        blocks: ChannelBlocks,
        steps: int,
    ) -> None:
        self.plane, self.stage, self.mac, self.plan = plane, stage, mac, plan
        self.output = plane.problem.output
        self.blocks, self.lanes = blocks, mac.idiom.lanes
        self.transforms = Transforms(plane, self.lanes, plan)
        self.points, self.steps = self.transforms.points, steps
        self.codes = self.lanes * mac.idiom.reduction  # of a vector in one step
        self.tiles = self.output.n * self.transforms.rows * self.transforms.cols
        widest = max(span.step for span in blocks.spans)
        self.workspace = [
            ("v", Flat((self.points * plan.tiles * plane.channels,), "int16")),
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
        own = {} if abi is Abi.BARE else {
            name: T.alloc_buffer(storage.shape, storage.dtype)
            for name, storage in self.workspace if name in names
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
            self.transforms.inputs(buffers, t, T.Bind(T.min(first + t, self.tiles - 1)))
        for span in self.blocks.spans:
            with outer_loop(span.count, abi) as index:
                inner = abi if "sums" not in buffers else Abi.BARE
                memory = self._allocated(buffers, inner, "sums")
                vector = T.Bind(span.first + index * span.step)
                self._multiply(memory, vector, span.step)
                with T.serial(T.min(self.plan.tiles, self.tiles - first)) as t:
                    self._finish(memory, t, first + t, vector, span.step)

    def _multiply(self, buffers: dict[str, Any], vector: Any, vectors: int) -> None:
        """The matrix products of one block of channels."""
        row = vectors * self.codes
        start = T.Bind(vector * (self.points * self.steps * self.codes))
        with loop(self.points) as point:
            weights = T.Bind(start + point * (self.steps * row))
            for group in split(self.plan.tiles, self.plan.group):
                with loop(group.count) as index:
                    t = T.Bind(point * self.plan.tiles + group.first + index * group.step)
                    for part in split(vectors, self.plan.vectors):
                        with loop(part.count) as k:
                            v = part.first + k * part.step
                            tile = _RegisterTile(
                                tiles=group.step, vectors=part.step, w_step=row,
                                x=T.Bind(t * self.plane.channels),
                                w=T.Bind(weights + v * self.codes),
                                y=T.Bind((t * vectors + v) * self.lanes),
                                y_step=vectors * self.lanes,
                            )  # fmt: skip
                            self._register_tile(buffers, tile)

    def _register_tile(self, buffers: dict[str, Any], tile: _RegisterTile) -> None:
        """Sums of some tiles and of some vectors of a block, in registers."""
        sums = registers(tile.tiles * tile.vectors, f"uint32x{self.lanes}")
        for index in range(tile.tiles * tile.vectors):
            T.buffer_store(sums, constant(0, "uint32", self.lanes), [index])
        unroll = self.mac.unroll
        if self.steps // unroll:
            with loop(self.steps // unroll) as i:
                self._steps(buffers, sums, tile, i * unroll, unroll)
        for k in range(self.steps // unroll * unroll, self.steps):
            self._steps(buffers, sums, tile, k, 1)
        for i in range(tile.tiles):
            for c in range(tile.vectors):
                place = tile.y + i * tile.y_step + c * self.lanes
                store(buffers["sums"], place, sums[i * tile.vectors + c], self.lanes)

    def _steps(
        self, buffers: dict[str, Any], sums: Any, tile: _RegisterTile, first: Any, unroll: int
    ) -> None:
        """Some reduction steps of a register tile."""
        channels, reduction = self.plane.channels, self.mac.idiom.reduction
        rows = [
            self.mac.load_activations(
                buffers["v"], tile.x + i * channels + first * reduction, unroll
            )
            for i in range(tile.tiles)
        ]
        for k in range(unroll):
            start = tile.w + (first + k) * tile.w_step
            codes = [
                T.Bind(self.mac.load_weights(buffers["weights"], start + c * self.codes))
                for c in range(tile.vectors)
            ]
            for i in range(tile.tiles):
                a = T.Bind(rows[i][k])
                for c in range(tile.vectors):
                    at = i * tile.vectors + c
                    value = self.mac.multiply_accumulate(sums[at], [a], [codes[c]])
                    T.buffer_store(sums, value, [at])

    def _finish(
        self, buffers: dict[str, Any], t: Any, tile: Any, vector: Any, vectors: int
    ) -> None:
        """Output transform and output stage of a tile."""
        output, lanes = self.output, self.lanes
        per_point = self.plan.tiles * vectors * lanes
        start = T.Bind(t * (vectors * lanes))
        self.transforms.sums(buffers, start, per_point, vectors)
        n, h, w = self.transforms.place(T.Bind(tile))
        slot = T.Bind(vector * lanes)
        with self._within(output.h, h) as i, self._within(output.w, w) as j:
            place = T.Bind(start + (i * self.plan.size.m + j) * per_point)
            for first, count in self.blocks.chunks_of(vectors):
                accs = [
                    self.transforms.accumulator(buffers, place, slot, first + k)
                    for k in range(count)
                ]
                self.stage.finish(buffers, accs, slot + first * lanes, (n, h + i, w + j))

    @contextmanager
    def _within(self, extent: int, start: Any) -> Iterator[Any]:
        """Loop over the rows or columns of a tile that the output has."""
        m = self.plan.size.m
        with T.serial(T.min(m, extent - start) if extent % m else m) as index:
            yield index
