"""Weights of the next channel block, asked for while the tiles of a block are computed.

Where blocks of channels are visited one after the other and there are more weights than the caches
hold, the first tile of a block would wait for weights from memory and all others find them in
the second-level cache. So every tile asks for an equal share of the next block, spread over its
steps: memory and multiplications overlap. Behind the last block the addresses are anything; a
prefetch of those does no harm.
"""

from __future__ import annotations

from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.emit.conv_loops import TileAt
from tvm_backend.layout import Image
from tvm_backend.macs.vector import prefetch
from tvm_backend.schedule.tiles import Tile, cost_of
from tvm_backend.tvm_api import T

_LINE = 64  # bytes of a cache line
_SECOND_LEVEL = 2  # locality: not into the first-level cache, which the block at work fills


def is_streamed(mac: MacIdiom, tile: Tile, output: Image, nbytes: int) -> bool:
    """Whether weights pass through the caches block by block, with tiles to hide it behind.

    Args:
        mac: The idiom.
        tile: Tile and order.
        output: What the tiles cover.
        nbytes: All weights.
    """
    least = cost_of(mac).streamed_from
    return (
        least is not None and nbytes > least and not tile.pixels_first and _tiles(tile, output) > 1
    )


def prefetch_share(
    buffer: Any, at: TileAt, tile: Tile, output: Image, first: Any, nbytes: int
) -> None:
    """Ask for this tile's share of a run of the next block's weights.

    Args:
        buffer: Weights.
        at: The tile.
        tile: Tile and order.
        output: What the tiles cover.
        first: Element the run starts with.
        nbytes: Bytes of the run.
    """
    index = at.h // tile.th * -(-output.w // tile.tw) + at.w // tile.tw
    prefetch_part(buffer, (index, _tiles(tile, output)), first, nbytes)


def prefetch_part(buffer: Any, part: tuple[Any, int], first: Any, nbytes: int) -> None:
    """Ask for one of several equal parts of a run.

    Args:
        buffer: Weights.
        part: Number of the part, and how many there are.
        first: Element the run starts with.
        nbytes: Bytes of the run.
    """
    skipped, count = share(*part, -(-nbytes // _LINE))
    start = T.Bind(first + skipped * _LINE)
    for line in range(count):
        prefetch(buffer, start + line * _LINE, _SECOND_LEVEL)


def share(index: Any, tiles: int, lines: int) -> tuple[Any, int]:
    """First line of a tile's share and how many it has; together the shares are all lines.

    Args:
        index: The tile's number.
        tiles: How many there are.
        lines: Lines to share out.
    """
    return index * lines // tiles, -(-lines // tiles)


def _tiles(tile: Tile, output: Image) -> int:
    """Tiles of an image, for one block of channels."""
    return -(-output.h // tile.th) * -(-output.w // tile.tw)
