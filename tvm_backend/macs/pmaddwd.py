"""x86 without VNNI: both operands widened to int16, then `pmaddwd` (exact, unlike `pmaddubsw`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.macs.interleave import interleave_quads
from tvm_backend.macs.vector import constant, llvm, load
from tvm_backend.tvm_api import T

# LLVM's name of the instruction by the lanes of its result.
PMADDWD = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True, slots=True)
class Pmaddwd:
    """pmaddwd on any register width.

    Attributes:
        idiom: The idiom it implements.
        intrinsic: LLVM's name of `pmaddwd` at that width.
        unroll: See `Mac`.
    """

    idiom: MacIdiom
    intrinsic: str
    unroll: int = 2

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """Codes sign-extended to int16."""
        return T.cast(load(buffer, offset, self._pairs), f"int16x{self._pairs}")

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """A 2-byte broadcast and a zero extension a step."""
        pairs = [T.reinterpret("int16", load(buffer, offset + 2 * i, 2)) for i in range(steps)]
        spread = [
            T.reinterpret(f"uint8x{self._pairs}", T.broadcast(pair, self.idiom.lanes))
            for pair in pairs
        ]
        return [T.cast(vector, f"int16x{self._pairs}") for vector in spread]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Two rows with zero bytes between: pairs of int16."""
        zeros = constant(0, "uint8", vectors * self.idiom.lanes)
        words = interleave_quads([rows[0], zeros, rows[1], zeros], self.idiom.lanes, vectors)
        return [T.reinterpret(f"int16x{self._pairs}", word) for word in words]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """`pmaddwd` and `paddd` a step."""
        for a, w in zip(activations, weights, strict=True):
            product = llvm(f"int32x{self.idiom.lanes}", self.intrinsic, a, w)
            acc = acc + T.reinterpret(f"{self.idiom.accumulator}x{self.idiom.lanes}", product)
        return acc

    @property
    def _pairs(self) -> int:
        return 2 * self.idiom.lanes
