"""Depthwise convolution by rows, vectorized over channels.

The taps of a kernel column (up to `reduction` rows of it) are interleaved channel by channel,
so that one multiply-accumulate sums them. Neighbouring output pixels share input columns: each
is loaded and interleaved once a tile and used by every pixel whose window contains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_loops import TileAt, visit_tiles
from tvm_backend.emit.conv_pack import ChannelBlocks, one_chunk_blocks, slot_channels
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.macs import Mac
from tvm_backend.macs.base import RowMac
from tvm_backend.macs.chain import chain_is_exact
from tvm_backend.macs.vector import constant, load, loop, registers
from tvm_backend.schedule.tiles import Tile
from tvm_backend.tvm_api import T


def rows_kernel(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    mac: RowMac,
    tile: Tile,
) -> Kernel:
    """The kernel by one idiom and tile; arguments as `depthwise_kernel`."""
    lanes, sizes = mac.idiom.lanes, stage.chunk_sizes()
    sizes = tuple(size for size in sizes if size <= tile.vectors) or sizes[-1:]
    vectors = -(-problem.output.c // lanes)
    blocks = one_chunk_blocks(vectors, sizes)
    channels = slot_channels(blocks, stage, lanes)
    packed = _pack(weight, blocks, channels, mac)
    folded = fold_zero_point(problem, weight, bias, vectors * lanes)
    constants = [("weights", packed), *stage.constants(folded, blocks.all_chunks())]
    emitter = _RowsEmitter(problem, stage, mac, tile, blocks)
    name = kernel_name(operator, problem, stage, tile, mac.idiom)
    return assemble(name, problem, stage, constants, emitter.emit)


def exact_rows(problem: ConvProblem, weight: np.ndarray, macs: Sequence[RowMac]) -> list[RowMac]:
    """The chained idioms that the taps of every channel allow, in order; then the one without."""
    low, high = problem.input_bounds
    found = []
    for mac in (mac for mac in macs if mac.idiom.chain):
        rows = _row_groups(weight, mac.idiom.reduction)  # [C, G, R, KW]
        codes = rows.swapaxes(2, 3).reshape(len(weight), rows.shape[1], -1)
        if chain_is_exact(codes, mac.idiom, low, high):
            found.append(mac)
    return [*found, macs[0]]


def _row_groups(weight: np.ndarray, per_step: int) -> np.ndarray:
    """`[C, 1, KH, KW]` -> `[C, groups, per_step, KW]`, zeros below the last row."""
    outputs, _, kh, kw = weight.shape
    groups = -(-kh // per_step)
    rows = np.zeros((outputs, groups * per_step, kw), np.int8)
    rows[:, :kh] = weight[:, 0]
    return rows.reshape(outputs, groups, per_step, kw)


def _pack(weight: np.ndarray, blocks: ChannelBlocks, channels: np.ndarray, mac: Mac) -> np.ndarray:
    """int8 `[block][row group][kw][vector][lane][reduction]`, flat; zeros below the last row.

    Args:
        weight: int8 `[C, 1, KH, KW]`.
        blocks: One chunk a block.
        channels: Channel of every lane, `[vectors, lanes]`.
        mac: The MAC implementation.
    """
    per_step, lanes = mac.idiom.reduction, mac.idiom.lanes
    rows = _row_groups(weight, per_step)
    _, groups, _, kw = rows.shape
    rows = np.pad(rows, [(0, channels.size - len(rows)), (0, 0), (0, 0), (0, 0)])
    codes = rows[channels]  # [V, L, G, R, KW]
    parts = []
    for span in blocks.spans:
        part = codes[span.first : span.first + span.count * span.step]
        part = part.reshape(span.count, span.step, lanes, groups, per_step, kw)
        parts.append(part.transpose(0, 3, 5, 1, 2, 4).reshape(-1))
    return np.ascontiguousarray(np.concatenate(parts))


class _RowsEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        mac: RowMac,
        tile: Tile,
        blocks: ChannelBlocks,
    ) -> None:
        self.problem, self.stage, self.mac = problem, stage, mac
        self.tile, self.blocks = tile, blocks
        self.lanes, self.per_step = mac.idiom.lanes, mac.idiom.reduction

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All tiles."""

        def body(at: TileAt) -> None:
            self._emit_tile(buffers, at)

        visit_tiles(self.problem.output, self.tile, self.blocks.spans, abi, body)

    def _emit_tile(self, buffers: dict[str, Any], at: TileAt) -> None:
        vectors = at.span.step
        acc = registers(at.tw * vectors, f"{self.mac.idiom.accumulator}x{self.lanes}")
        slot = T.Bind(at.vector * self.lanes)
        for v in range(vectors):
            bias = T.Bind(load(buffers["bias"], slot + v * self.lanes, self.lanes))
            for j in range(at.tw):
                T.buffer_store(acc, bias, [j * vectors + v])
        kh, kw = self.problem.kernel
        groups, rest = divmod(kh, self.per_step)
        per_group = kw * vectors * self.lanes * self.per_step
        weights = T.Bind(at.vector * ((groups + bool(rest)) * per_group // vectors))
        if groups:
            with loop(groups) as g:
                rows = g * self.per_step
                self._row_group(
                    buffers, at, acc, slot, weights + g * per_group, rows, self.per_step
                )
        if rest:
            first = groups * self.per_step
            self._row_group(buffers, at, acc, slot, weights + groups * per_group, first, rest)
        for j in range(at.tw):
            accs = [acc[j * vectors + v] for v in range(vectors)]
            self.stage.finish(buffers, accs, slot, (at.n, at.h, at.w + j))

    def _row_group(
        self, buffers: dict[str, Any], at: TileAt, acc: Any, slot: Any, weights: Any,
        first_row: Any, rows: int,
    ) -> None:  # fmt: skip
        """Up to `reduction` kernel rows, all kernel columns, all pixels of the tile."""
        source, vectors = self.problem.source, at.span.step
        (sh, sw), (dh, dw) = self.problem.stride, self.problem.dilation
        top, left = self.problem.padding[0], self.problem.padding[2]
        width, per_vector = vectors * self.lanes, self.lanes * self.per_step
        origin = T.Bind(
            source.offset(at.n, at.h * sh - top + first_row * dh, at.w * sw - left, slot)
        )
        operands: dict[int, list[Any]] = {}
        for column, users in self._columns(at.tw, sw, dw).items():
            taps = [
                T.Bind(
                    load(
                        buffers["x"],
                        origin + (i * dh * source.row_stride + column * source.channels),
                        width,
                    )
                )
                for i in range(rows)
            ]
            zeros = [constant(0, source.dtype, width)] * (self.per_step - rows)
            interleaved = self.mac.interleave([*taps, *zeros], vectors)
            operands[column] = [T.Bind(operand) for operand in interleaved]
            for v in range(vectors):
                for j, chain in users:
                    value = self.mac.multiply_accumulate(
                        acc[j * vectors + v],
                        [operands[j * sw + k * dw][v] for k in chain],
                        [
                            self.mac.load_weights(
                                buffers["weights"], weights + (k * vectors + v) * per_vector
                            )
                            for k in chain
                        ],
                    )
                    T.buffer_store(acc, value, [j * vectors + v])

    def _columns(self, tw: int, sw: int, dw: int) -> dict[int, list[tuple[int, range]]]:
        """Input columns, left to right -> what becomes possible with each.

        That is pixels, each with the chain of kernel columns whose last one the column serves.
        """
        kw, size = self.problem.kernel[1], max(self.mac.idiom.chain, 1)
        users: dict[int, list[tuple[int, range]]] = {}
        for j in range(tw):
            for first in range(0, kw, size):
                chain = range(first, min(first + size, kw))
                for k in chain:
                    users.setdefault(j * sw + k * dw, [])
                users[j * sw + chain[-1] * dw].append((j, chain))
        return dict(sorted(users.items()))
