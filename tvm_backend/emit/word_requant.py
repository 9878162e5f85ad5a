"""Requantization of 8-bit codes on vectors of int16: twice as many lanes as in int32.

A difference of two codes has 9 bits, so shifting it is exact in int16 (after saturation), and the
rest of the requantization is defined in int16 anyway. A product of two differences has 18 bits and
is shifted in int32. The steps are those of the output stage of convolutions (`epilogue.py`), as are
the instructions (`epilogue_isa.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.numerics.width import WIDTH_8
from fxquant.targets import Target
from tvm_backend.emit.epilogue_isa import EpilogueIsa, epilogue_isa
from tvm_backend.emit.loops import splat
from tvm_backend.emit.requant import Grid
from tvm_backend.macs.vector import clamp, constant, llvm
from tvm_backend.tvm_api import T

_CODE_SHIFTS = 7  # 255 << 7 fits int16


def saturating_add(a: Any, b: Any, lanes: int) -> Any:
    """int16 addition that saturates."""
    return llvm(f"int16x{lanes}", f"llvm.sadd.sat.v{lanes}i16", a, b)


def scale_difference(isa: EpilogueIsa, value: Any, multiplier: Any, shift: int, lanes: int) -> Any:
    """`scale_accumulator` of a difference of 8-bit codes.

    Args:
        isa: The int16 instructions.
        value: int16 vector.
        multiplier: m, an int16 vector.
        shift: s.
        lanes: Lanes of the vectors.
    """
    if shift > 0:
        # From 9 bits on everything rounds to 0: half <= value + half < 2 * half.
        shift = min(shift, 10)
        value = value + constant(1 << (shift - 1), "int16", lanes)
        value = T.shift_right(value, constant(shift, "int16", lanes))
    elif shift < 0:
        exact = min(-shift, _CODE_SHIFTS)
        value = T.shift_left(value, constant(exact, "int16", lanes))
        for _ in range(-shift - exact):
            value = T.Bind(saturating_add(value, value, lanes))  # saturating doubling
    return isa.multiply_high(value, multiplier, lanes)


@dataclass(frozen=True, slots=True)
class CodeScale:
    """Requantization of one operand.

    Attributes:
        zero_point: Stored zero point, an integer or a scalar expression.
        multiplier: m, likewise.
        shift: s.
    """

    zero_point: Any
    multiplier: Any
    shift: int

    def apply(self, isa: EpilogueIsa, codes: Any, lanes: int) -> Any:
        """int16 vector of stored codes -> scaled values."""
        difference = codes - splat(self.zero_point, "int16", lanes)
        multiplier = splat(self.multiplier, "int16", lanes)
        return scale_difference(isa, difference, multiplier, self.shift, lanes)


@dataclass(frozen=True, slots=True)
class WordCompute(ABC):
    """8-bit codes of one or more operands to codes of one grid.

    Attributes:
        isa: The int16 instructions.
        grid: Grid of the result, stored.
        dtype: Storage of operands and result.
    """

    isa: EpilogueIsa
    grid: Grid
    dtype: str

    def chunks(self) -> tuple[int, ...]:
        """Numbers of codes that can be done together, largest first."""
        return tuple(n * self.isa.lanes for n in self.isa.chunk_sizes(natural=False))

    def apply(self, codes: Sequence[Any], count: int) -> Any:
        """Stored codes of every operand -> stored codes.

        Args:
            codes: One vector of `count` codes an operand.
            count: One of `chunks()`.
        """
        isa, vectors = self.isa, count // self.isa.lanes
        halves = [isa.unpack(T.Bind(vector), vectors) for vector in codes]
        parts = [self._part([half[i] for half in halves], vectors) for i in range(len(halves[0]))]
        return self._clip(isa.narrow(parts, self.dtype, vectors), count)

    @abstractmethod
    def scaled(self, words: Sequence[Any], vectors: int) -> Any:
        """The result in units of a 64th of its step, an int16 vector.

        Args:
            words: Stored codes of every operand, as int16 vectors.
            vectors: Accumulator vectors of the chunk.
        """

    def _part(self, words: Sequence[Any], vectors: int) -> Any:
        lanes, k = self.isa.int16_lanes(vectors), WIDTH_8.fraction_bits
        total = self.scaled(words, vectors)
        rounding = splat((1 << (k - 1)) + (self.grid.zero_point << k), "int16", lanes)
        total = saturating_add(total, rounding, lanes)
        return T.shift_right(total, constant(k, "int16", lanes))

    def _clip(self, result: Any, count: int) -> Any:
        """Clip bounds that the storage type does not enforce."""
        low, high = (0, 255) if self.dtype == "uint8" else (-128, 127)
        if self.grid.qmin > low:
            result = T.max(result, constant(self.grid.qmin, self.dtype, count))
        if self.grid.qmax < high:
            result = T.min(result, constant(self.grid.qmax, self.dtype, count))
        return result


def _has_words(target: Target, grid: Grid, dtypes: Sequence[str]) -> bool:
    """Whether operands and result are codes in the target's 8-bit storage."""
    return grid.width is WIDTH_8 and set(dtypes) == {target.mac.storage}


@dataclass(frozen=True, slots=True)
class WordRequant(WordCompute):
    """The sum of requantized operands.

    Attributes:
        operands: One scale an operand.
    """

    operands: tuple[CodeScale, ...]

    @staticmethod
    def of(
        target: Target, operands: Sequence[CodeScale], grid: Grid, dtypes: Sequence[str]
    ) -> WordRequant | None:
        """The requantization, or None where the codes have not the target's 8-bit storage."""
        if not _has_words(target, grid, dtypes):
            return None
        return WordRequant(epilogue_isa(target), grid, dtypes[0], tuple(operands))

    def scaled(self, words: Sequence[Any], vectors: int) -> Any:
        """See WordCompute."""
        lanes = self.isa.int16_lanes(vectors)
        pairs = zip(self.operands, words, strict=True)
        total, *others = [scale.apply(self.isa, word, lanes) for scale, word in pairs]
        for other in others:
            total = saturating_add(total, other, lanes)
        return total


@dataclass(frozen=True, slots=True)
class WordProduct(WordCompute):
    """The requantized product of two operands.

    Attributes:
        zero_points: Stored zero points of the operands, integers or scalar expressions.
        multiplier: m, likewise.
        shift: s.
    """

    zero_points: tuple[Any, ...]
    multiplier: Any
    shift: int

    @staticmethod
    def of(
        target: Target, zero_points: tuple[Any, ...], multiplier: Any, shift: int, grid: Grid,
        dtypes: Sequence[str],
    ) -> WordProduct | None:  # fmt: skip
        """The product, or None where the codes have not the target's 8-bit storage."""
        if not _has_words(target, grid, dtypes):
            return None
        isa = epilogue_isa(target)
        return WordProduct(isa, grid, dtypes[0], zero_points, multiplier, shift)

    def scaled(self, words: Sequence[Any], vectors: int) -> Any:
        """See WordCompute."""
        isa, lanes = self.isa, self.isa.int16_lanes(vectors)
        a, b = (
            word - splat(zero_point, "int16", lanes)
            for word, zero_point in zip(words, self.zero_points, strict=True)
        )
        shifted = [self._shifted(product) for product in isa.multiply(a, b, vectors)]
        (packed,) = isa.pack(shifted)
        return isa.multiply_high(packed, splat(self.multiplier, "int16", lanes), lanes)

    def _shifted(self, acc: Any) -> Any:
        lanes = self.isa.lanes
        if self.shift > 0:
            acc = acc + constant(1 << (self.shift - 1), "int32", lanes)
            return T.shift_right(acc, constant(self.shift, "int32", lanes))
        # What a left shift moves is clamped to 16 bits first; beyond them it saturates either way.
        acc = clamp(acc, -(1 << 15), (1 << 15) - 1, "int32", lanes)
        return T.shift_left(acc, constant(-self.shift, "int32", lanes)) if self.shift else acc
