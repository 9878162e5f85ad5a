"""x86 without VNNI, int16 chains: `pmaddubsw` sums two products u8 x s8 into each int16 element.

`pmaddubsw` saturates, and so does nothing here: a layer takes this idiom only if its codes prove
that no sum of a chain leaves int16 (`chain.py`). The steps of a chain are added with `paddw`;
one `pmaddwd` by ones and one `paddd` then serve all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom, idioms
from tvm_backend.macs.interleave import interleave_quads
from tvm_backend.macs.pmaddwd import PMADDWD
from tvm_backend.macs.vector import constant, llvm, load
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Pmaddubsw:
    """pmaddubsw on any register width.

    Attributes:
        idiom: The idiom it implements.
        multiply: LLVM's name of `pmaddubsw` at that width.
        widen: LLVM's name of `pmaddwd` at that width.
    """

    idiom: MacIdiom
    multiply: str
    widen: str

    @property
    def unroll(self) -> int:
        """One chain."""
        return self.idiom.chain

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """4 codes a lane."""
        return load(buffer, offset, 4 * self.idiom.lanes)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One 4-byte broadcast a step."""
        lanes = self.idiom.lanes
        words = [T.reinterpret("int32", load(buffer, offset + 4 * i, 4)) for i in range(steps)]
        return [T.reinterpret(f"uint8x{4 * lanes}", T.broadcast(word, lanes)) for word in words]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Four rows of bytes."""
        lanes = self.idiom.lanes
        words = interleave_quads(rows, lanes, vectors)
        return [T.reinterpret(f"uint8x{4 * lanes}", word) for word in words]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """`pmaddubsw` and `paddw` a step; `pmaddwd` and `paddd` once."""
        lanes = self.idiom.lanes
        products = [
            llvm(f"int16x{2 * lanes}", self.multiply, a, w)
            for a, w in zip(activations, weights, strict=True)
        ]
        total = products[0]
        for product in products[1:]:
            total = total + product
        ones = constant(1, "int16", 2 * lanes)
        return acc + llvm(f"int32x{lanes}", self.widen, total, ones)


MACS_256 = tuple(
    Pmaddubsw(idiom, "llvm.x86.avx2.pmadd.ub.sw", PMADDWD[8]) for idiom in idioms.PMADDUBSW_256
)
MACS_512 = tuple(
    Pmaddubsw(idiom, "llvm.x86.avx512.pmaddubs.w.512", PMADDWD[16])
    for idiom in idioms.PMADDUBSW_512
)
