"""Activations widened once for all output channels: blocks of the input as int16 on the stack.

Without dot products of bytes, x86 multiplies int16. Widened where they are multiplied, activations
cost an instruction for every kernel position and block of output channels; here a block of output
rows has its input widened once, in a buffer that stays in the nearest caches, and all channel
blocks of these rows read it.

Strided kernels of one position stage the pixels they use and nothing between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm_backend.emit.conv_loops import TileAt, Window, divmod_index, place
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.kernel import Abi, outer_loop
from tvm_backend.layout import code_width
from tvm_backend.macs import Mac
from tvm_backend.macs.vector import load, loop, store
from tvm_backend.schedule.tiles import SPREAD_ROWS, Span, Tile, split
from tvm_backend.tvm_api import IN_REGISTERS, T

STAGED_BYTES = 1 << 16  # of the buffer, which is on the stack
STAGING_CYCLES = 0.15  # of one element
_LANES, _BYTES = 16, 2  # elements widened at once; bytes of an int16


class Staging:
    """Which output pixels share a staged block, and how it lies in memory.

    Args:
        problem: The convolution.
        tile: Its register tile.

    Attributes:
        rows: Rows of tiles in a block: as many as fit, in blocks of about equal size.
        cols: Columns of tiles in a block where no whole row fits, else 0.
        dense: Whether only the pixels that are used are staged.
        stride: Staged rows and columns from one output pixel to the next.
        row_elements: Elements of a staged row.
    """

    def __init__(self, problem: ConvProblem, tile: Tile) -> None:
        self.problem, self.tile = problem, tile
        self.dense = problem.taps == 1 and problem.stride != (1, 1)
        self.stride = (1, 1) if self.dense else problem.stride
        output = problem.output
        tiles = max(output.h // tile.th, 1)
        fitting = [n for n in range(1, tiles + 1) if self._fits(n, output.w)]
        self.rows = -(-tiles // -(-tiles // max(fitting, default=1)))
        widths = range(1, max(output.w // tile.tw, 1) + 1)
        narrow = [n for n in widths if self._fits(1, n * tile.tw)]
        self.cols = 0 if fitting else max(narrow, default=1)
        self.row_elements = self._row_elements(self.cols * tile.tw or output.w)

    @property
    def size(self) -> int:
        """Elements of the buffer."""
        return self.extent(self.rows * self.tile.th, 0) * self.row_elements

    @property
    def fits(self) -> bool:
        """Whether a block is small enough for the stack."""
        return self.size * _BYTES <= STAGED_BYTES

    @property
    def cycles(self) -> float:
        """Cycles of staging the whole input."""
        output = self.problem.output
        blocks = output.n * -(-output.h // (self.rows * self.tile.th))
        if self.cols:
            blocks *= -(-output.w // (self.cols * self.tile.tw))
        return STAGING_CYCLES * self.size * max(blocks, SPREAD_ROWS)

    def extent(self, pixels: Any, axis: int) -> Any:
        """Staged rows or columns of so many output pixels in a row."""
        window = self.problem.dilation[axis] * (self.problem.kernel[axis] - 1) + 1
        return (pixels - 1) * self.stride[axis] + window

    def _row_elements(self, pixels: int) -> int:
        return self.extent(pixels, 1) * self.problem.source.channels

    def _fits(self, tile_rows: int, pixels: int) -> bool:
        rows = self.extent(tile_rows * self.tile.th, 0)
        return rows * self._row_elements(pixels) * _BYTES <= STAGED_BYTES


def is_staged(problem: ConvProblem, mac: Mac) -> bool:
    """Whether an idiom wants wider activations than the input has."""
    return mac.idiom.activation_bits != code_width(problem.source.dtype).bits


def visit_staged(
    staging: Staging,
    spans: Sequence[Span],
    abi: Abi,
    source: Any,
    body: Callable[[TileAt, Window], None],
) -> None:
    """Call `body` for every tile of the output, inside the loops that lead to it.

    Blocks are spread over threads; where there are few, so are the output channels, and every
    thread stages its own copy.

    Args:
        staging: The plan.
        spans: Runs of blocks of output channels.
        abi: Calling convention.
        source: Buffer of the input.
        body: Emits a tile.
    """
    output, tile = staging.problem.output, staging.tile
    across = split(output.w, tile.tw)
    buffer = _stack(staging) if abi is Abi.BARE else None
    for down in split(output.h, tile.th):
        for columns in [[span] for span in across] if staging.cols else [across]:
            high = -(-down.count // staging.rows)
            wide = -(-columns[0].count // staging.cols) if staging.cols else 1
            total = output.n * high * wide
            spread = abi is Abi.PACKED and total < SPREAD_ROWS
            for runs in [[span] for span in spans] if spread else [spans]:
                wanted = -(-SPREAD_ROWS // total) if spread else 1
                per_part = -(-runs[0].count // wanted)
                parts = -(-runs[0].count // per_part) if spread else 1
                with outer_loop(total * parts, abi) as index:
                    part, rest = divmod_index(index, parts, total)
                    n, rest = divmod_index(rest, output.n, high * wide)
                    row, col = divmod_index(rest, high, wide)
                    block = _Block(
                        staging, _stack(staging) if buffer is None else buffer, n,
                        _part(down, row, staging.rows),
                        [_part(span, col, staging.cols or span.count) for span in columns],
                    )  # fmt: skip
                    block.fill(source)
                    block.visit(
                        [_part(run, part, per_part) if spread else run for run in runs], body
                    )


def _stack(staging: Staging) -> Any:
    """A buffer for one block, of one thread."""
    return T.alloc_buffer((staging.size,), "int16", annotations=IN_REGISTERS)


def _part(span: Span, index: Any, count: int) -> Span:
    """The part of `span` that starts after `index * count` of its steps and has `count` or less."""
    if count >= span.count:
        return span
    left = span.count - index * count
    whole = span.count % count == 0
    size = count if whole else T.Bind(T.min(left, count))
    return Span(T.Bind(span.first + index * (count * span.step)), size, span.step)


class _Block:
    """One staged block.

    Args:
        staging: The plan.
        buffer: Where it lies.
        n: Image.
        down: Its rows of tiles.
        columns: Its columns of tiles.
    """

    def __init__(
        self, staging: Staging, buffer: Any, n: Any, down: Span, columns: Sequence[Span]
    ) -> None:
        self.staging, self.buffer, self.n = staging, buffer, n
        self.down, self.columns = down, columns

    def fill(self, source: Any) -> None:
        """Widen the block's input."""
        staging, problem = self.staging, self.staging.problem
        image, (sh, sw) = problem.source, problem.stride
        last = self.columns[-1]
        rows = staging.extent(self.down.count * self.down.step, 0)
        pixels = last.first + last.count * last.step - self.columns[0].first
        cols = staging.extent(pixels, 1)
        down, right = (sh, sw) if staging.dense else (1, 1)
        unit = image.channels
        if isinstance(cols, int) and not staging.dense:
            unit, cols = cols * unit, 1
        h = self.down.first * sh - problem.padding[0]
        w = self.columns[0].first * sw - problem.padding[2]
        first = T.Bind(image.offset(self.n, h, w, 0))
        with _loop(rows) as r, _loop(cols) as c:
            begin = T.Bind(first + r * (down * image.row_stride) + c * (right * image.channels))
            end = T.Bind(r * staging.row_elements + c * unit)
            self._widen(source, begin, end, unit)

    def _widen(self, source: Any, begin: Any, end: Any, count: int) -> None:
        """Copy `count` contiguous elements."""
        done = 0
        for lanes in (_LANES, math.gcd(count, _LANES)):
            with loop((count - done) // lanes) as i:
                at = done + i * lanes
                value = T.cast(load(source, begin + at, lanes), f"int16x{lanes}")
                store(self.buffer, end + at, value, lanes)
            done = count // lanes * lanes

    def visit(self, spans: Sequence[Span], body: Callable[[TileAt, Window], None]) -> None:
        """Call `body` for the block's tiles of runs of channel blocks."""

        def visit(across: Span, i: Any, j: Any, span: Span, block: Any) -> None:
            at = place(self.n, i, j, self.down, across, span, block)
            body(at, self._window(at))

        if self.staging.tile.pixels_first:
            with _loop(self.down.count) as i:
                for across in self.columns:
                    with _loop(across.count) as j:
                        for span in spans:
                            with _loop(span.count) as block:
                                visit(across, i, j, span, block)
            return
        for span in spans:
            with _loop(span.count) as block, _loop(self.down.count) as i:
                for across in self.columns:
                    with _loop(across.count) as j:
                        visit(across, i, j, span, block)

    def _window(self, at: TileAt) -> Window:
        staging, channels = self.staging, self.staging.problem.source.channels
        sh, sw = staging.stride
        row, col = at.h - self.down.first, at.w - self.columns[0].first
        origin = row * (sh * staging.row_elements) + col * (sw * channels)
        return Window(self.buffer, T.Bind(origin), staging.row_elements, channels, staging.stride)


def _loop(extent: Any) -> Any:
    """A serial loop of an extent that may be known at run time only."""
    return loop(extent) if isinstance(extent, int) else T.serial(extent)
