"""A table of 256 bytes read with byte shuffles instead of one load an element.

x86: `pshufb` reads 16 bytes by the low half of each index byte and gives 0 where bit 7 is set.
With the index i of a half of 128 bytes, all slices k <= i / 16 read the same place i % 16 when they
are given i - 16k, all later ones get a negative number and give 0. So the slices are stored as
differences, each XOR the slice before it, and the XOR of all reads is the element. Both halves read
with the same i, and bit 7 of the index selects: 2.5 instructions a slice.
aarch64: `tbl` reads 64 bytes and gives 0 beyond; `tbx` leaves the destination as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fxquant.targets import Target
from tvm_backend.emit.loops import load, splat
from tvm_backend.tvm_api import T

_PSHUFB = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}
_SLICE, _SLICES_OF_HALF = 16, 8


class Scalar:
    """Any machine: one load an element."""

    lanes = (1,)
    together = 1

    def constant(self, table: np.ndarray) -> np.ndarray:
        """The table as it is."""
        return table

    def read(self, buffer: Any, indices: Sequence[Any], lanes: int) -> list[Any]:
        """One element each."""
        del lanes
        return [buffer[T.cast(index, "int32")] for index in indices]


class X86:
    """`pshufb` on vectors of up to `widest` bytes."""

    # Two vectors a load of a slice: 16 registers do not hold the table.
    together = 2

    def __init__(self, widest: int) -> None:
        self.lanes = tuple(n for n in (64, 32, 16) if n <= widest)

    def constant(self, table: np.ndarray) -> np.ndarray:
        """The differences, every slice repeated to a full vector."""
        slices = table.view(np.uint8).reshape(2, _SLICES_OF_HALF, 1, _SLICE).copy()
        slices[:, 1:] ^= slices[:, :-1]
        repeated = np.repeat(slices, self.lanes[0] // _SLICE, 2)
        return repeated.reshape(-1).view(table.dtype)

    def read(self, buffer: Any, indices: Sequence[Any], lanes: int) -> list[Any]:
        """`lanes` elements each."""
        dtype = f"uint8x{lanes}"
        places = [T.Bind(index & splat(0x7F, "uint8", lanes)) for index in indices]
        halves: list[list[Any]] = [[] for _ in indices]
        for k in range(_SLICES_OF_HALF):
            # Not below -112: nothing wraps around.
            shifted = [T.Bind(i - splat(_SLICE * k, "uint8", lanes)) if k else i for i in places]
            for half in range(2):
                at = (half * _SLICES_OF_HALF + k) * self.lanes[0]
                part = T.Bind(T.reinterpret(dtype, load(buffer, at, lanes)))
                for found, place in zip(halves, shifted, strict=True):
                    read = T.call_llvm_pure_intrin(dtype, _PSHUFB[lanes], part, place)
                    if k:
                        found[half] = T.Bind(found[half] ^ read)
                    else:
                        found.append(T.Bind(read))
        return [
            T.Bind(T.Select(T.reinterpret(f"int8x{lanes}", index) < splat(0, "int8", lanes), b, a))
            for index, (a, b) in zip(indices, halves, strict=True)
        ]


class Aarch64:
    """`tbl`, then `tbx`, with four table registers each."""

    lanes = (16,)
    together = 2

    def constant(self, table: np.ndarray) -> np.ndarray:
        """The table as it is."""
        return table

    def read(self, buffer: Any, indices: Sequence[Any], lanes: int) -> list[Any]:
        """16 elements each."""
        dtype, name = f"uint8x{lanes}", "llvm.aarch64.neon.{}4.v16i8"
        found: list[Any] = []
        for k in range(4):
            parts = [
                T.Bind(T.reinterpret(dtype, load(buffer, 64 * k + 16 * i, lanes))) for i in range(4)
            ]
            if not k:
                found = [
                    T.call_llvm_pure_intrin(dtype, name.format("tbl"), *parts, index)
                    for index in indices
                ]
                continue
            shifted = [index - splat(64 * k, "uint8", lanes) for index in indices]
            found = [
                T.call_llvm_pure_intrin(dtype, name.format("tbx"), T.Bind(before), *parts, place)
                for before, place in zip(found, shifted, strict=True)
            ]
        return [T.Bind(result) for result in found]


ByteTable = Scalar | X86 | Aarch64


def byte_table(target: Target) -> ByteTable:
    """The way of a target."""
    if target.triple.startswith("aarch64"):
        return Aarch64()
    if target.triple.startswith("x86_64") and target.vector_bits >= 256:
        return X86(target.vector_bits // 8)
    return Scalar()
