"""Weight codes of 2..7 bits: packed at their width, and widened to int8 before a layer runs.

128 codes make a block: 8 groups of 16. A width is a sum of planes of 4, 2 and 1 bits (6 = 4 + 2).
A plane of p bits takes p vectors of 16 bytes; bits `p * (g // p)` and up of byte i of vector
`g % p` belong to code i of group g. So every group is shifts and masks of whole vectors, and no
code crosses a byte:

    code = sign_extend(sum over planes of ((vector[g % p] >> p * (g // p)) & (2^p - 1)) << below)

with `below` the bits of the planes before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_backend.layout import round_up
from tvm_backend.tvm_api import IRBuilder, T

LANES, GROUPS = 16, 8
BLOCK = LANES * GROUPS  # codes
WIDTHS = range(2, 8)


def planes_of(bits: int) -> list[tuple[int, int]]:
    """`(bits of the plane, bits of the planes before it)` for each plane of a width."""
    planes, below = [], 0
    for plane in (4, 2, 1):
        if bits & plane:
            planes.append((plane, below))
            below += plane
    return planes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that many codes take."""
    return round_up(count, BLOCK) * bits // 8


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes.

    Args:
        codes: int8, flat, each in `[-2^(bits-1), 2^(bits-1))`.
        bits: 2..7.

    Returns:
        uint8; whole blocks, zero codes at the end.
    """
    padded = np.zeros(round_up(codes.size, BLOCK), np.uint8)
    padded[: codes.size] = codes.view(np.uint8)
    groups = padded.reshape(-1, GROUPS, LANES)
    parts = []
    for plane, below in planes_of(bits):
        field = (groups >> below) & ((1 << plane) - 1)
        vectors = np.zeros((len(groups), plane, LANES), np.uint8)
        for g in range(GROUPS):
            vectors[:, g % plane] |= field[:, g] << (plane * (g // plane))
        parts.append(vectors.reshape(len(groups), -1))
    return np.concatenate(parts, 1).reshape(-1)


def widen_function(bits: int) -> Any:
    """PrimFunc `(const uint8 *packed, int32 blocks, int8 *codes)` that undoes `pack`."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("widen")
            T.func_attr({"global_symbol": "widen", "tirx.noalias": True})
            source = T.arg("packed", T.handle("uint8"))
            blocks = T.arg("blocks", T.int32())
            result = T.arg("codes", T.handle("int8"))
            stride = BLOCK * bits // 8
            packed = T.decl_buffer((blocks * stride,), "uint8", data=source)
            codes = T.decl_buffer((blocks * BLOCK,), "int8", data=result)
            with T.serial(blocks) as block:
                for g in range(GROUPS):
                    value = _group(packed, block * stride, bits, g)
                    place = T.ramp(block * BLOCK + g * LANES, 1, LANES)
                    T.buffer_store(codes, T.reinterpret(f"int8x{LANES}", value), [place])
        return builder.get()


def _group(packed: Any, start: Any, bits: int, g: int) -> Any:
    """The codes of group `g`, sign-extended, as unsigned bytes."""
    value, before = None, 0
    for plane, below in planes_of(bits):
        vector = packed[T.ramp(start + before + (g % plane) * LANES, 1, LANES)]
        field = (vector >> _splat(plane * (g // plane))) & _splat((1 << plane) - 1)
        field = field << _splat(below)
        value = field if value is None else value | field
        before += plane * LANES
    sign = _splat(1 << (bits - 1))
    return (value ^ sign) - sign


def _splat(value: int) -> Any:
    return T.broadcast(T.cast(value, "uint8"), LANES)
