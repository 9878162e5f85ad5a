"""Order of output channels in registers, and weights packed in the order they are used.

Weights lie `[block][kh * kw][step][vector][lane][reduction]`: one sequential stream a block; of
codes of few bits several vectors may share the bytes of one (`conv_weights.py`).
A vector of a grouped convolution reduces over the contiguous range of input channels that its
groups touch; codes outside a lane's own group are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_weights import BYTES, WeightForm
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.layout import round_up
from tvm_backend.macs import Mac
from tvm_backend.schedule.tiles import Span, split


@dataclass(frozen=True, slots=True)
class ChannelBlocks:
    """Output vectors in register blocks, and blocks in chunks that are finished together.

    Attributes:
        spans: Runs of equal blocks, in vectors.
        sizes: Chunk sizes the output stage knows, largest first.
    """

    spans: tuple[Span, ...]
    sizes: tuple[int, ...]

    def chunks_of(self, vectors: int) -> list[tuple[int, int]]:
        """`(first vector, vectors)` of each chunk of a block."""
        chunks, first = [], 0
        for size in self.sizes:
            while vectors - first >= size:
                chunks.append((first, size))
                first += size
        return chunks

    def all_chunks(self) -> list[tuple[int, int]]:
        """`(first vector, vectors)` of every chunk."""
        return [
            (span.first + block * span.step + first, size)
            for span in self.spans
            for block in range(span.count)
            for first, size in self.chunks_of(span.step)
        ]


def channel_blocks(vectors: int, per_block: int, stage: OutputStage) -> ChannelBlocks:
    """Cover `vectors` by blocks of `per_block`."""
    return ChannelBlocks(tuple(split(vectors, per_block)), stage.chunk_sizes())


def one_chunk_blocks(vectors: int, sizes: tuple[int, ...]) -> ChannelBlocks:
    """Cover `vectors` by blocks that are one chunk each; the smallest size has to divide them."""
    spans, first = [], 0
    for size in sizes:
        count = (vectors - first) // size
        if count:
            spans.append(Span(first, count, size))
            first += count * size
    return ChannelBlocks(tuple(spans), sizes)


def slot_channels(blocks: ChannelBlocks, stage: OutputStage, lanes: int) -> np.ndarray:
    """Output channel of every accumulator lane, `[vectors, lanes]`."""
    parts = [
        first * lanes + stage.accumulator_order(vectors) for first, vectors in blocks.all_chunks()
    ]
    return np.concatenate(parts).reshape(-1, lanes)


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """Which input channels each output vector reduces over.

    Attributes:
        starts: First stored channel of each vector, a multiple of the reduction, `[vectors]`.
        steps: Reduction steps a kernel position, the same for all vectors.
    """

    starts: np.ndarray
    steps: int


def reduction_ranges(problem: ConvProblem, vectors: int, mac: Mac) -> Reduction:
    """The ranges; all start at 0 without groups."""
    per_step, lanes = mac.idiom.reduction, mac.idiom.lanes
    if problem.groups == 1:
        return Reduction(np.zeros(vectors, np.int64), -(-problem.source.c // per_step))
    per_input = problem.source.c // problem.groups
    per_output = problem.output.c // problem.groups
    first = np.arange(vectors) * lanes
    last = np.minimum(first + lanes, problem.output.c) - 1
    low = first // per_output * per_input
    high = (last // per_output + 1) * per_input
    low = low // per_step * per_step
    steps = int((-(-(high - low) // per_step)).max())
    limit = round_up(problem.source.c, per_step) - steps * per_step
    return Reduction(np.minimum(low, limit), steps)


def slot_codes(
    problem: ConvProblem,
    weight: np.ndarray,
    channels: np.ndarray,
    reduction: Reduction,
    mac: Mac,
) -> np.ndarray:
    """int8 `[vectors, lanes, E, taps]`: the codes every lane multiplies, in order.

    Args:
        problem: The convolution.
        weight: int8 `[O, C/groups, KH, KW]`.
        channels: Output channel of every lane, `[vectors, lanes]`.
        reduction: Input ranges.
        mac: The MAC implementation.
    """
    outputs, per_input = weight.shape[:2]
    flat = weight.reshape(outputs, per_input, problem.taps)
    extent = reduction.steps * mac.idiom.reduction
    if problem.groups == 1:  # no index a weight: linear layers have 100 million
        return dense_slot_codes(flat, channels, extent)
    group = channels // max(problem.output.c // problem.groups, 1)  # [V, L]
    position = reduction.starts[:, None, None] + np.arange(extent) - (group * per_input)[..., None]
    valid = (position >= 0) & (position < per_input) & (channels < outputs)[..., None]
    codes = flat[
        np.minimum(channels, outputs - 1)[..., None], np.clip(position, 0, per_input - 1)
    ]  # [V, L, E, taps]
    return np.where(valid[..., None], codes, 0).astype(np.int8)


def dense_slot_codes(codes: np.ndarray, channels: np.ndarray, extent: int) -> np.ndarray:
    """`slot_codes` without groups: int8 `[O, C, taps]` -> `[vectors, lanes, extent, taps]`."""
    outputs, per_input, taps = codes.shape
    padded = np.zeros((outputs + 1, extent, taps), np.int8)
    padded[:outputs, :per_input] = codes
    return padded[np.minimum(channels, outputs)]


def pack_blocks(
    codes: np.ndarray, spans: Sequence[Span], per_step: int, form: WeightForm = BYTES
) -> np.ndarray:
    """`[vectors, lanes, channels, taps]` -> `[block][taps][step][vector][lane][reduction]`."""
    _, lanes, extent, taps = codes.shape
    parts = []
    for span in spans:
        part = codes[span.first : span.first + span.count * span.step]
        shape = (span.count, span.step, lanes, extent // per_step, per_step, taps)
        ordered = part.reshape(shape).transpose(0, 5, 3, 1, 2, 4)
        parts.append(form.pack(ordered.reshape(*ordered.shape[:4], -1)).reshape(-1))
    return np.ascontiguousarray(np.concatenate(parts))
