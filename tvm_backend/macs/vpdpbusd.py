"""x86 with VNNI: `vpdpbusd` sums 4 products u8 x s8 into each int32 lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.macs.interleave import interleave_quads
from tvm_backend.macs.vector import llvm, load
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Vpdpbusd:
    """vpdpbusd on any register width.

    Attributes:
        idiom: The idiom it implements.
        intrinsic: LLVM's name of the instruction at that width; operand types as since LLVM 21.
        unroll: See `Mac`.
    """

    idiom: MacIdiom
    intrinsic: str
    unroll: int = 4

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """Four codes a lane."""
        return load(buffer, offset, self._bytes)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One 4-byte broadcast a step."""
        words = [T.reinterpret("int32", load(buffer, offset + 4 * i, 4)) for i in range(steps)]
        return [self._operand(T.broadcast(word, self.idiom.lanes)) for word in words]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Four rows of bytes."""
        return [self._operand(word) for word in interleave_quads(rows, self.idiom.lanes, vectors)]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """One instruction a step."""
        for a, w in zip(activations, weights, strict=True):
            acc = llvm(f"int32x{self.idiom.lanes}", self.intrinsic, acc, a, w)
        return acc

    @property
    def _bytes(self) -> int:
        return 4 * self.idiom.lanes

    def _operand(self, words: Any) -> Any:
        return T.reinterpret(f"uint8x{self._bytes}", words)
