"""AVX512-VNNI: `vpdpbusd zmm` sums 4 products u8 x s8 into each of 16 int32 lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from fxquant.targets.idioms import VPDPBUSD_512
from tvm_backend.macs.interleave import interleave_quads
from tvm_backend.macs.vector import llvm, load
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Vpdpbusd512:
    """See the module docstring; the operand types are those of LLVM >= 21."""

    idiom: MacIdiom = VPDPBUSD_512
    unroll: int = 4

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """64 codes."""
        return load(buffer, offset, 64)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One 4-byte broadcast a step."""
        words = [T.reinterpret("int32", load(buffer, offset + 4 * i, 4)) for i in range(steps)]
        return [T.reinterpret("uint8x64", T.broadcast(word, 16)) for word in words]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Four rows of bytes."""
        words = interleave_quads(rows, 16, vectors)
        return [T.reinterpret("uint8x64", word) for word in words]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """One instruction a step."""
        for a, w in zip(activations, weights, strict=True):
            acc = llvm("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, a, w)
        return acc
