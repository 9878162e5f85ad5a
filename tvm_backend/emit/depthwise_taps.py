"""Depthwise convolution tap by tap: the channels of a vector are multiplied where they lie.

For instructions that multiply bytes into int16 lane by lane: nothing is interleaved. A pixel sums
the products of several taps in int16, as many as the codes allow, before it adds them to int32.
Input columns are loaded from left to right, each once a tile, and extend the sums of all pixels
whose window contains them; a pixel is finished with its last column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_loops import TileAt, visit_tiles
from tvm_backend.emit.conv_pack import ChannelBlocks, one_chunk_blocks
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.macs import Mac
from tvm_backend.macs.base import TapMac
from tvm_backend.macs.chain import chain_is_exact
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.schedule.tiles import Tile
from tvm_backend.tvm_api import T

_HALVES = 2  # accumulator vectors of the output stage in one of the idiom


def exact_taps(
    problem: ConvProblem, stage: OutputStage, weight: np.ndarray, macs: Sequence[Mac]
) -> list[TapMac]:
    """The idiom with the fewest chains among those that these codes allow; empty without one.

    Args:
        problem: Storages and geometry.
        stage: What happens to the accumulators: it has to finish two vectors at a time.
        weight: int8 `[C, 1, KH, KW]`.
        macs: The target's idioms for taps, longest chain first.
    """
    low, high = problem.input_bounds
    codes = weight[:, 0].swapaxes(1, 2).reshape(len(weight), -1)  # in the order of the products
    chains: dict[int, TapMac] = {}
    for mac in macs:
        lanes = mac.idiom.lanes
        whole = all(i.channels % lanes == 0 for i in (problem.source, problem.output))
        if not isinstance(mac, TapMac) or not whole or not _sizes(stage, _HALVES):
            continue
        if chain_is_exact(codes, mac.idiom, low, high):
            chains[-(-problem.taps // mac.idiom.chain)] = mac  # of equal ones the shortest
    return [chains[min(chains)]] if chains else []


def _sizes(stage: OutputStage, most: int) -> tuple[int, ...]:
    """Chunk sizes of whole vectors of the idiom, largest first."""
    return tuple(s for s in stage.chunk_sizes() if s % _HALVES == 0 and s <= most)


def taps_kernel(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    mac: TapMac,
    tile: Tile,
) -> Kernel:
    """The kernel by one idiom and tile; arguments as `depthwise_kernel`."""
    lanes = mac.idiom.lanes
    vectors = -(-problem.output.c // lanes)
    blocks = one_chunk_blocks(_HALVES * vectors, _sizes(stage, _HALVES * tile.vectors))
    folded = fold_zero_point(problem, weight, bias, vectors * lanes)
    constants = [
        ("weights", _pack(weight, blocks, vectors * lanes, lanes)),
        *stage.constants(folded, blocks.all_chunks()),
    ]
    emitter = _TapsEmitter(problem, stage, mac, tile, blocks)
    name = kernel_name(operator, problem, stage, tile, mac.idiom)
    return assemble(name, problem, stage, constants, emitter.emit)


def _pack(weight: np.ndarray, blocks: ChannelBlocks, slots: int, lanes: int) -> np.ndarray:
    """int8 `[block][kw][kh][vector][lane]`, flat."""
    codes = np.zeros((slots, *weight.shape[2:]), np.int8)
    codes[: len(weight)] = weight[:, 0]
    parts = []
    for span in blocks.spans:
        first, step = span.first // _HALVES, span.step // _HALVES
        part = codes[first * lanes : (first + span.count * step) * lanes]
        part = part.reshape(span.count, step * lanes, *codes.shape[1:])
        parts.append(part.transpose(0, 3, 2, 1).reshape(-1))
    return np.concatenate(parts)


class _Sums:
    """The running sums of one pixel: a chain in int16 for each vector, the rest in int32."""

    def __init__(self, mac: TapMac, bias: Sequence[Any]) -> None:
        self.mac, self.accs = mac, list(bias)
        self._start()

    def _start(self) -> None:
        self.totals: list[Any] = [None] * len(self.accs)
        self.steps = 0

    def extend(self, activations: Sequence[Any], weights: Sequence[Any]) -> None:
        """One tap."""
        operands = zip(self.totals, activations, weights, strict=True)
        self.totals = [T.Bind(self.mac.extend(*operand)) for operand in operands]
        self.steps += 1
        if self.steps == self.mac.idiom.chain:
            self._widen()

    def _widen(self) -> None:
        pairs = zip(self.accs, self.totals, strict=True)
        self.accs = [T.Bind(self.mac.finish(acc, total)) for acc, total in pairs]
        self._start()

    def finished(self) -> list[Any]:
        """Accumulators as the output stage takes them."""
        if self.steps:
            self._widen()
        return [half for acc in self.accs for half in self.mac.halves(acc)]


class _TapsEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        mac: TapMac,
        tile: Tile,
        blocks: ChannelBlocks,
    ) -> None:
        self.problem, self.stage, self.mac = problem, stage, mac
        self.tile, self.blocks, self.lanes = tile, blocks, mac.idiom.lanes

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All tiles."""

        def body(at: TileAt) -> None:
            self._emit_tile(buffers, at)

        visit_tiles(self.problem.output, self.tile, self.blocks.spans, abi, body)

    def _emit_tile(self, buffers: dict[str, Any], at: TileAt) -> None:
        problem, vectors = self.problem, at.span.step // _HALVES
        (kh, kw), (_, sw), (_, dw) = problem.kernel, problem.stride, problem.dilation
        slot = T.Bind(at.vector * (self.lanes // _HALVES))
        weights = self._weights(buffers["weights"], T.Bind(slot * problem.taps), vectors)
        bias = [
            T.Bind(load(buffers["bias"], slot + v * self.lanes, self.lanes)) for v in range(vectors)
        ]
        users: dict[int, list[tuple[int, int]]] = {}  # input column -> (pixel, kernel column)
        for j in range(at.tw):
            for k in range(kw):
                users.setdefault(j * sw + k * dw, []).append((j, k))
        sums: dict[int, _Sums] = {}
        for column, pixels in sorted(users.items()):
            rows = self._column(buffers["x"], at, slot, column, vectors)
            for j, k in pixels:
                pixel = sums.setdefault(j, _Sums(self.mac, bias))
                for i in range(kh):
                    pixel.extend(rows[i], weights[k * kh + i])
                if k == kw - 1:
                    place = (at.n, at.h, at.w + j)
                    self.stage.finish(buffers, sums.pop(j).finished(), slot, place)

    def _weights(self, buffer: Any, start: Any, vectors: int) -> list[list[Any]]:
        """Every tap, column by column, as one operand a vector."""
        return [
            [
                T.Bind(self.mac.load_weights(buffer, start + (tap * vectors + v) * self.lanes))
                for v in range(vectors)
            ]
            for tap in range(self.problem.taps)
        ]

    def _column(self, x: Any, at: TileAt, slot: Any, column: int, vectors: int) -> list[list[Any]]:
        """The kernel's rows of one input column, each as one operand a vector."""
        problem, source = self.problem, self.problem.source
        (sh, sw), (dh, _) = problem.stride, problem.dilation
        top, left = problem.padding[0], problem.padding[2]
        origin = source.offset(at.n, at.h * sh - top, at.w * sw - left, slot)
        found = []
        for i in range(problem.kernel[0]):
            offset = origin + (i * dh * source.row_stride + column * source.channels)
            row = T.Bind(load(x, offset, vectors * self.lanes))
            found.append(self._parts(row, vectors))
        return found

    def _parts(self, row: Any, vectors: int) -> list[Any]:
        if vectors == 1:
            return [row]
        return [shuffle([row], range(v * self.lanes, (v + 1) * self.lanes)) for v in range(vectors)]
