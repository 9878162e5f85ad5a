"""Copies inside a pixel: runs of channels by the widest vectors that fit.

A vector may write past the end of its run: into padding channels, or into the next run, which
is copied later. It may never leave the pixel it reads or the pixel it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm_backend.emit.loops import load, store
from tvm_backend.tvm_api import T

CONVERTED_LANES = 16
COPIED_LANES = 64

# a vector as loaded, and its lanes -> what is stored
Convert = Callable[[Any, int], Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """`repeat` vectors of `lanes` elements from `start` of a run."""

    start: int
    lanes: int
    repeat: int


def chunks(
    count: int, source_room: int, target_room: int, widest: int = CONVERTED_LANES
) -> list[Chunk]:
    """Vectors that cover `count` elements.

    Args:
        count: Length of the run.
        source_room: Elements from the run's start to the end of the pixel it is read from.
        target_room: The same where it is written.
        widest: Lanes of the widest vector, a power of two.
    """
    room = min(source_room, target_room)
    found = []
    full = count // widest
    if full:
        found.append(Chunk(0, widest, full))
    start = full * widest
    while start < count:
        lanes = widest
        while start + lanes > room:  # the tail: as wide as the pixel allows
            lanes //= 2
        while lanes // 2 >= count - start:
            lanes //= 2
        found.append(Chunk(start, lanes, 1))
        start += lanes
    return found


def copy_run(
    x: Any, source: Any, y: Any, target: Any, run: list[Chunk], convert: Convert | None = None
) -> None:
    """Copy a run of channels.

    Args:
        x: Buffer read.
        source: Position of the run in `x`.
        y: Buffer written.
        target: Position of the run in `y`.
        run: From `chunks`.
        convert: Applied to every vector.
    """
    for chunk in run:

        def one(i: Any, lanes: int) -> None:
            vector = load(x, source + i, lanes)
            store(y, target + i, vector if convert is None else convert(vector, lanes), lanes)

        if chunk.repeat == 1:
            one(chunk.start, chunk.lanes)
        else:
            with T.serial(chunk.repeat) as k:
                one(chunk.start + k * chunk.lanes, chunk.lanes)
