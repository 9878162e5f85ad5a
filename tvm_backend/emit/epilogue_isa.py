"""The int16 steps of the requantization on each instruction set.

Every ISA turns a CHUNK of 1, 2 or 4 int32 vectors into int16 vectors and these into one vector
of 8-bit codes. On x86 the pack instructions interleave the 128-bit lanes; instead of permuting
registers, the channels are permuted when weights and constants are packed, so each ISA says
which channel of the chunk sits in which slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fxquant.targets import MacIdiom, Target, idioms
from tvm_backend.macs.pmaddwd import PMADDWD
from tvm_backend.macs.vector import clamp, concat, constant, llvm, load, shuffle
from tvm_backend.tvm_api import T


class EpilogueIsa(Protocol):
    """int32 accumulators -> int16 -> 8-bit codes."""

    @property
    def lanes(self) -> int:
        """int32 lanes of an accumulator vector."""
        ...

    def chunk_sizes(self, natural: bool) -> tuple[int, ...]:
        """Vectors a chunk can have, largest first; `natural` forbids permuted channels."""
        ...

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """Channel (relative to the chunk) of each accumulator lane, `[vectors * lanes]`."""
        ...

    def packed_order(self, vectors: int) -> np.ndarray:
        """Channel (relative to the chunk) of each int16 lane, `[vectors * lanes]`."""
        ...

    def shift_constants(self, shift: np.ndarray, left: bool) -> list[np.ndarray]:
        """Arrays that `shift` reads, from s in accumulator order.

        Args:
            shift: s of each accumulator lane.
            left: Whether some s is negative, known when the kernel is made.
        """
        ...

    def shift(self, acc: Any, shifts: list[Any], slot: Any, left: bool) -> Any:
        """`acc >> s` or `acc << -s`: exact after saturation to int16."""
        ...

    def pack(self, values: list[Any]) -> list[Any]:
        """Saturate int32 vectors to int16 vectors of `int16_lanes(len(values))` lanes."""
        ...

    def int16_lanes(self, vectors: int) -> int:
        """Lanes of each int16 vector of a chunk."""
        ...

    def multiply_high(self, a: Any, b: Any, lanes: int) -> Any:
        """`(a * b + 2^14) >> 15` for `b != -2^15`."""
        ...

    def narrow(self, values: list[Any], dtype: str, vectors: int) -> Any:
        """Saturate int16 vectors to one vector of 8-bit codes in channel order."""
        ...

    def unpack(self, codes: Any, vectors: int) -> list[Any]:
        """The inverse of `narrow`: codes widened to int16 vectors."""
        ...

    def multiply(self, a: Any, b: Any, vectors: int) -> list[Any]:
        """int32 products of int16 vectors, which `pack` returns to the order of these."""
        ...


def _two_shift_constants(shift: np.ndarray, left: bool) -> list[np.ndarray]:
    right = np.maximum(shift, 0)
    return [right, np.maximum(-shift, 0)] if left else [right]


def _two_shifts(acc: Any, shifts: list[Any], slot: Any, left: bool, lanes: int) -> Any:
    """Right shift; then, if some channel needs it, saturate and shift left (below 2^30)."""
    value = T.shift_right(acc, load(shifts[0], slot, lanes))
    if not left:
        return value
    value = clamp(value, -(1 << 15), (1 << 15) - 1, "int32", lanes)
    return T.shift_left(value, load(shifts[1], slot, lanes))


def _product(a: Any, b: Any, lanes: int) -> Any:
    """int32 vector from two of int16."""
    return T.cast(a, f"int32x{lanes}") * T.cast(b, f"int32x{lanes}")


def _saturate_int16(value: Any, lanes: int) -> Any:
    return T.cast(clamp(value, -(1 << 15), (1 << 15) - 1, "int32", lanes), f"int16x{lanes}")


def _saturate_codes(value: Any, dtype: str, lanes: int) -> Any:
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    return T.cast(clamp(value, low, high, "int16", lanes), f"{dtype}x{lanes}")


_PACKSSDW = {8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_PACKUSWB = {8: "llvm.x86.avx2.packuswb", 16: "llvm.x86.avx512.packuswb.512"}
_PMULHRSW = {
    8: "llvm.x86.ssse3.pmul.hr.sw.128",
    16: "llvm.x86.avx2.pmul.hr.sw",
    32: "llvm.x86.avx512.pmul.hr.sw.512",
}


@dataclass(frozen=True, slots=True)
class X86:
    """AVX2 (8 lanes) and AVX-512 (16): packssdw, pmulhrsw, packuswb."""

    lanes: int

    def chunk_sizes(self, natural: bool) -> tuple[int, ...]:
        """Chunks of one vector keep the channel order."""
        return (1,) if natural else (4, 2, 1)

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """Vector i, 128-bit lane l, element j holds channel `4*vectors*l + 4*i + j`."""
        i, lane, j = np.ogrid[:vectors, : self.lanes // 4, :4]
        return (4 * vectors * lane + 4 * i + j).reshape(-1)

    def packed_order(self, vectors: int) -> np.ndarray:
        """After packssdw: vector k, 128-bit lane l, element e holds `4*vectors*l + 8*k + e`."""
        if vectors == 1:
            return np.arange(self.lanes)
        k, lane, e = np.ogrid[: vectors // 2, : self.lanes // 4, :8]
        return (4 * vectors * lane + 8 * k + e).reshape(-1)

    def shift_constants(self, shift: np.ndarray, left: bool) -> list[np.ndarray]:
        """Right amounts; left amounts where some channel has one."""
        return _two_shift_constants(shift, left)

    def shift(self, acc: Any, shifts: list[Any], slot: Any, left: bool) -> Any:
        """`vpsravd`, rarely followed by `vpsllvd`."""
        return _two_shifts(acc, shifts, slot, left, self.lanes)

    def pack(self, values: list[Any]) -> list[Any]:
        """`packssdw` on pairs."""
        if len(values) == 1:
            return [_saturate_int16(values[0], self.lanes)]
        name, dtype = _PACKSSDW[self.lanes], f"int16x{2 * self.lanes}"
        pairs = zip(values[::2], values[1::2], strict=True)
        return [llvm(dtype, name, a, b) for a, b in pairs]

    def int16_lanes(self, vectors: int) -> int:
        """A register; half of one for a single vector."""
        return self.lanes if vectors == 1 else 2 * self.lanes

    def multiply_high(self, a: Any, b: Any, lanes: int) -> Any:
        """`pmulhrsw`."""
        return llvm(f"int16x{lanes}", _PMULHRSW[lanes], a, b)

    def narrow(self, values: list[Any], dtype: str, vectors: int) -> Any:
        """`packuswb` for four vectors."""
        if vectors < 4:
            return _saturate_codes(values[0], dtype, self.int16_lanes(vectors))
        lanes = 4 * self.lanes
        packed = llvm(f"int8x{lanes}", _PACKUSWB[self.lanes], *values)
        return T.reinterpret(f"uint8x{lanes}", packed)

    def unpack(self, codes: Any, vectors: int) -> list[Any]:
        """`punpcklbw`, `punpckhbw` with zero: the order of `packed_order`."""
        lanes = self.int16_lanes(vectors)
        if vectors < 4:
            return [T.cast(codes, f"int16x{lanes}")]
        zeros = constant(0, "uint8", 2 * lanes)
        picks = [
            [i for q in range(self.lanes // 4) for e in range(8) for i in (16 * q + 8 * k + e, -1)]
            for k in range(2)
        ]
        interleaved = [
            shuffle([codes, zeros], [2 * lanes if i < 0 else i for i in pick]) for pick in picks
        ]
        return [T.reinterpret(f"int16x{lanes}", vector) for vector in interleaved]

    def multiply(self, a: Any, b: Any, vectors: int) -> list[Any]:
        """`pmaddwd` of pairs, the second product of each with zero."""
        if vectors == 1:
            return [_product(a, b, self.lanes)]
        zeros = constant(0, "int16", 2 * self.lanes)
        picks = [[8 * q + 4 * k + e for q in range(self.lanes // 4) for e in range(4)]
                 for k in range(2)]  # fmt: skip
        twice = [shuffle([a], [i for e in pick for i in (e, e)]) for pick in picks]
        once = [shuffle([b, zeros], [i for e in pick for i in (e, 2 * self.lanes)])
                for pick in picks]  # fmt: skip
        pairs = zip(twice, once, strict=True)
        return [llvm(f"int32x{self.lanes}", PMADDWD[self.lanes], x, y) for x, y in pairs]


@dataclass(frozen=True, slots=True)
class _NaturalOrder:
    """Channels in order everywhere; int16 vectors of two int32 vectors."""

    lanes: int = 4

    def chunk_sizes(self, natural: bool) -> tuple[int, ...]:
        """Chunks of four fill a 128-bit store."""
        return (4, 2, 1)

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """Identity."""
        return np.arange(vectors * self.lanes)

    def packed_order(self, vectors: int) -> np.ndarray:
        """Identity."""
        return np.arange(vectors * self.lanes)

    def pack(self, values: list[Any]) -> list[Any]:
        """`sqxtn`, `sqxtn2` where they exist."""
        halves = [_saturate_int16(value, self.lanes) for value in values]
        if len(values) == 1:
            return halves
        return [concat(halves[i : i + 2], self.lanes) for i in range(0, len(values), 2)]

    def int16_lanes(self, vectors: int) -> int:
        """Eight; four for a single vector."""
        return self.lanes if vectors == 1 else 2 * self.lanes

    def narrow(self, values: list[Any], dtype: str, vectors: int) -> Any:
        """`sqxtn` or `sqxtun`."""
        lanes = self.int16_lanes(vectors)
        return concat([_saturate_codes(value, dtype, lanes) for value in values], lanes)

    def unpack(self, codes: Any, vectors: int) -> list[Any]:
        """Widen, eight codes at a time."""
        lanes = self.int16_lanes(vectors)
        if vectors < 4:
            return [T.cast(codes, f"int16x{lanes}")]
        halves = [shuffle([codes], range(i, i + lanes)) for i in (0, lanes)]
        return [T.cast(half, f"int16x{lanes}") for half in halves]

    def multiply(self, a: Any, b: Any, vectors: int) -> list[Any]:
        """`smull`, `smull2` where they exist."""
        lanes = self.lanes
        if vectors == 1:
            return [_product(a, b, lanes)]
        halves = [range(i, i + lanes) for i in (0, lanes)]
        return [_product(shuffle([a], half), shuffle([b], half), lanes) for half in halves]


@dataclass(frozen=True, slots=True)
class Neon(_NaturalOrder):
    """Variable shifts take a signed amount and saturate; `sqrdmulh` is the multiplication.

    Attributes:
        shift_right: LLVM's name of the shift used when every s >= 0.
        shift_saturating: The one used otherwise.
        doubling_multiply: LLVM's name of `sqrdmulh`, without its type suffix.
    """

    shift_right: str = "llvm.aarch64.neon.sshl.v4i32"
    shift_saturating: str = "llvm.aarch64.neon.sqshl.v4i32"
    doubling_multiply: str = "llvm.aarch64.neon.sqrdmulh"

    def shift_constants(self, shift: np.ndarray, left: bool) -> list[np.ndarray]:
        """A positive amount shifts left."""
        return [-shift]

    def shift(self, acc: Any, shifts: list[Any], slot: Any, left: bool) -> Any:
        """`sshl` or `sqshl`."""
        name = self.shift_saturating if left else self.shift_right
        return llvm("int32x4", name, acc, load(shifts[0], slot, self.lanes))

    def multiply_high(self, a: Any, b: Any, lanes: int) -> Any:
        """`sqrdmulh`."""
        return llvm(f"int16x{lanes}", f"{self.doubling_multiply}.v{lanes}i16", a, b)


ARMV7 = Neon(
    shift_right="llvm.arm.neon.vshifts.v4i32",
    shift_saturating="llvm.arm.neon.vqshifts.v4i32",
    doubling_multiply="llvm.arm.neon.vqrdmulh",
)


@dataclass(frozen=True, slots=True)
class Portable(_NaturalOrder):
    """Plain vector arithmetic for any LLVM target."""

    def shift_constants(self, shift: np.ndarray, left: bool) -> list[np.ndarray]:
        """Right amounts; left amounts where some channel has one."""
        return _two_shift_constants(shift, left)

    def shift(self, acc: Any, shifts: list[Any], slot: Any, left: bool) -> Any:
        """Shifts of vectors by vectors."""
        return _two_shifts(acc, shifts, slot, left, self.lanes)

    def multiply_high(self, a: Any, b: Any, lanes: int) -> Any:
        """The int32 product fits: `|a * b| < 2^30`."""
        wide = f"int32x{lanes}"
        product = T.cast(a, wide) * T.cast(b, wide) + constant(1 << 14, "int32", lanes)
        return T.cast(T.shift_right(product, constant(15, "int32", lanes)), f"int16x{lanes}")


_ISAS: dict[MacIdiom, EpilogueIsa] = {
    idioms.VPDPBUSD_512: X86(16),
    idioms.VPDPBUSD_256: X86(8),
    idioms.PMADDWD_512: X86(16),
    idioms.PMADDWD_256: X86(8),
    idioms.SDOT: Neon(),
    idioms.USDOT: Neon(),
    idioms.SMULL_SADALP: Neon(),
    idioms.VMULL_VPADAL: ARMV7,
}


def epilogue_isa(target: Target) -> EpilogueIsa:
    """The int16 instructions that go with a target's MAC idiom."""
    return _ISAS.get(target.mac, Portable(target.mac.lanes))
