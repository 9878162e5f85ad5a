"""Visit all register tiles of an output: which loops, which of them over threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm_backend.kernel import Abi, outer_loop
from tvm_backend.layout import Image
from tvm_backend.macs.vector import loop
from tvm_backend.schedule.tiles import Span, Tile, split


@dataclass(frozen=True, slots=True)
class TileAt:
    """One tile's place.

    Attributes:
        n: Image.
        h: First output row.
        w: First output column.
        th: Rows.
        tw: Columns.
        span: The run of channel blocks it belongs to.
        block: Index of the channel block in that run.
    """

    n: Any
    h: Any
    w: Any
    th: int
    tw: int
    span: Span
    block: Any

    @property
    def vector(self) -> Any:
        """First output vector."""
        return self.span.first + self.block * self.span.step

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """Row and column of each pixel inside the tile."""
        return [(i, j) for i in range(self.th) for j in range(self.tw)]


@dataclass(frozen=True, slots=True)
class Window:
    """Where the windows of a tile's pixels lie.

    Attributes:
        buffer: Activations.
        origin: Element the first pixel's window starts with.
        row_stride: Elements from one row to the next.
        channels: Elements from one column to the next.
        stride: Rows and columns from one pixel's window to the next one's.
    """

    buffer: Any
    origin: Any
    row_stride: int
    channels: int
    stride: tuple[int, int]


def visit_tiles(
    image: Image, tile: Tile, spans: Sequence[Span], abi: Abi, body: Callable[[TileAt], None]
) -> None:
    """Call `body` for every tile of `image`, inside the loops that lead to it.

    Threads share rows of tiles, or channel blocks and, where all tiles have the same rows, the rows
    of each block: a few wide blocks alone would leave threads without work.
    """
    rows, cols = split(image.h, tile.th), split(image.w, tile.tw)
    if tile.pixels_first:
        for down in rows:
            with outer_loop(image.n * down.count, abi) as index:
                n, i = divmod_index(index, image.n, down.count)
                for across in cols:
                    with loop(across.count) as j:
                        for span in spans:
                            with loop(span.count) as block:
                                body(place(n, i, j, down, across, span, block))
        return
    shared = rows[0].count if len(rows) == 1 else 1
    for span in spans:
        with outer_loop(image.n * span.count * shared, abi) as index:
            n, rest = divmod_index(index, image.n, span.count * shared)
            block, row = divmod_index(rest, span.count, shared)
            for down in rows:
                with loop(down.count // shared) as i:
                    for across in cols:
                        with loop(across.count) as j:
                            body(place(n, row + i, j, down, across, span, block))


def divmod_index(index: Any, outer: int, inner: int) -> tuple[Any, Any]:
    """Split the index of a fused loop of `outer * inner` iterations."""
    return (index // inner, index % inner) if outer > 1 else (0, index)


def place(n: Any, i: Any, j: Any, down: Span, across: Span, span: Span, block: Any) -> TileAt:
    """The tile in row i and column j of tiles, of a run of channel blocks."""
    h, w = down.first + i * down.step, across.first + j * across.step
    return TileAt(n, h, w, down.step, across.step, span, block)
