"""Bytes of several rows interleaved channel by channel, for depthwise convolution.

Depthwise layers have no activation to broadcast: lane l needs the taps of ITS channel side by
side. Inside every 128-bit lane this is two levels of unpack (x86) or zip (ARM), and it leaves
the channels of four vectors in the order the pack instructions of the epilogue undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm_backend.macs.vector import constant, shuffle
from tvm_backend.tvm_api import T


def _unpack(a: Any, b: Any, elements: int, per_lane: int, high: bool) -> Any:
    """`punpckl`/`punpckh`: elements of the low or high half of each 128-bit lane, alternating."""
    half = per_lane // 2
    picks = [
        source + lane * per_lane + high * half + e
        for lane in range(elements // per_lane)
        for e in range(half)
        for source in (0, elements)
    ]
    return T.Bind(shuffle([a, b], picks))


def interleave_pairs(a: Any, b: Any, lanes: int, vectors: int) -> list[Any]:
    """`a0 b0 a1 b1 ...` as int16 vectors of `2 * lanes` (one of `lanes` for a single vector).

    Args:
        a: uint8 vector of `vectors * lanes` bytes.
        b: The same; bytes of the high halves.
        lanes: int32 lanes of an accumulator vector.
        vectors: 1, 2 or 4.
    """
    if vectors == 4:
        count = 4 * lanes
        halves = [_unpack(a, b, count, 16, high) for high in (False, True)]
        return [T.reinterpret(f"int16x{2 * lanes}", half) for half in halves]
    count = vectors * lanes
    low, high = T.cast(a, f"int16x{count}"), T.cast(b, f"int16x{count}")
    return [T.Bind(low | T.shift_left(high, constant(8, "int16", count)))]


def interleave_quads(rows: Sequence[Any], lanes: int, vectors: int) -> list[Any]:
    """`a0 b0 c0 d0 a1 b1 ...` as `vectors` int32 vectors in the epilogue's accumulator order.

    Args:
        rows: Four uint8 vectors of `vectors * lanes` bytes.
        lanes: int32 lanes of an accumulator vector.
        vectors: 1, 2 or 4.
    """
    word = f"int32x{lanes}"
    if vectors == 1:
        value = T.cast(rows[0], word)
        for i, row in enumerate(rows[1:], 1):
            value = value | T.shift_left(T.cast(row, word), constant(8 * i, "int32", lanes))
        return [T.Bind(value)]
    first = interleave_pairs(rows[0], rows[1], lanes, vectors)
    second = interleave_pairs(rows[2], rows[3], lanes, vectors)
    return [
        T.reinterpret(word, _unpack(a, b, 2 * lanes, 8, high))
        for a, b in zip(first, second, strict=True)
        for high in (False, True)
    ]
