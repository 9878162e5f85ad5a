"""A table of 256 bytes read with byte shuffles instead of one load an element.

x86: `pshufb` reads 16 bytes by the low half of each index byte and gives 0 where bit 7 is set.
For slice k of the table, `index - 16*k` lies in 0..15 exactly where slice k is meant, and adding
0x70 with saturation sets bit 7 everywhere else. The union of all 16 slices is the result.
aarch64: `tbl` reads 64 bytes and gives 0 beyond, so four of them do.
"""

from __future__ import annotations

from functools import reduce
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
_SLICE, _SLICES = 16, 16


class Scalar:
    """Any machine: one load an element."""

    lanes = (1,)

    def constant(self, table: np.ndarray) -> np.ndarray:
        """The table as it is."""
        return table

    def prepare(self, buffer: Any, lanes: int) -> list[Any]:
        """Nothing to hold in registers."""
        del lanes
        return [buffer]

    def read(self, prepared: list[Any], index: Any, lanes: int) -> Any:
        """One element."""
        del lanes
        return prepared[0][T.cast(index, "int32")]


class X86:
    """`pshufb` on vectors of up to `widest` bytes."""

    def __init__(self, widest: int) -> None:
        self.lanes = tuple(n for n in (64, 32, 16) if n <= widest)

    def constant(self, table: np.ndarray) -> np.ndarray:
        """Every slice repeated to a full vector."""
        slices = table.reshape(_SLICES, 1, _SLICE)
        return np.ascontiguousarray(np.repeat(slices, self.lanes[0] // _SLICE, 1)).reshape(-1)

    def prepare(self, buffer: Any, lanes: int) -> list[Any]:
        """All slices in registers."""
        return [T.Bind(load(buffer, k * self.lanes[0], lanes)) for k in range(_SLICES)]

    def read(self, prepared: list[Any], index: Any, lanes: int) -> Any:
        """`lanes` elements."""
        dtype = f"uint8x{lanes}"
        found = []
        for k, part in enumerate(prepared):
            shifted = index - splat(_SLICE * k, "uint8", lanes) if k else index
            marked = T.call_llvm_pure_intrin(
                dtype, f"llvm.uadd.sat.v{lanes}i8", shifted, splat(0x70, "uint8", lanes)
            )
            picked = T.call_llvm_pure_intrin(
                dtype, _PSHUFB[lanes], T.reinterpret(dtype, part), marked
            )
            found.append(T.Bind(picked))
        return reduce(lambda a, b: a | b, found)


class Aarch64:
    """`tbl` with four table registers."""

    lanes = (16,)

    def constant(self, table: np.ndarray) -> np.ndarray:
        """The table as it is."""
        return table

    def prepare(self, buffer: Any, lanes: int) -> list[Any]:
        """The table in 16 registers."""
        dtype = f"uint8x{lanes}"
        return [T.Bind(T.reinterpret(dtype, load(buffer, 16 * k, 16))) for k in range(16)]

    def read(self, prepared: list[Any], index: Any, lanes: int) -> Any:
        """16 elements."""
        found = []
        for k in range(4):
            shifted = index - splat(64 * k, "uint8", lanes) if k else index
            found.append(
                T.call_llvm_pure_intrin(
                    "uint8x16", "llvm.aarch64.neon.tbl4.v16i8",
                    *prepared[4 * k : 4 * k + 4], shifted,
                )
            )  # fmt: skip
        return reduce(lambda a, b: a | b, found)


ByteTable = Scalar | X86 | Aarch64


def byte_table(target: Target) -> ByteTable:
    """The way of a target."""
    if target.triple.startswith("aarch64"):
        return Aarch64()
    if target.triple.startswith("x86_64") and target.vector_bits >= 256:
        return X86(target.vector_bits // 8)
    return Scalar()
