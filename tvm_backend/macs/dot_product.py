"""ARM dot products: 4 products summed into each of 4 int32 lanes, activations by lane index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.macs.interleave import interleave_quads
from tvm_backend.macs.vector import llvm, load, shuffle
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class DotProduct:
    """`sdot` or `usdot`.

    Attributes:
        idiom: The idiom it implements.
        intrinsic: LLVM's name of the instruction.
        weights_first: Whether the int8 weights are the first factor (`usdot` wants them second).
        unroll: Four steps read one 16-byte register.
    """

    idiom: MacIdiom
    intrinsic: str
    weights_first: bool
    unroll: int = 4

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """16 codes."""
        return load(buffer, offset, 16)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One 16-byte load whose words LLVM folds into lane-indexed dots; or one `ld1r`."""
        dtype = f"{self.idiom.storage}x16"
        if steps == 1:
            word = T.reinterpret("int32", load(buffer, offset, 4))
            return [T.reinterpret(dtype, T.broadcast(word, 4))]
        words = T.Bind(T.reinterpret("int32x4", load(buffer, offset, 16)))
        return [T.reinterpret(dtype, shuffle([words], [i] * 4)) for i in range(steps)]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Four rows of bytes."""
        plain = [T.reinterpret(f"uint8x{4 * vectors}", row) for row in rows]
        words = interleave_quads(plain, 4, vectors)
        return [T.reinterpret(f"{self.idiom.storage}x16", word) for word in words]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """One instruction a step."""
        for a, w in zip(activations, weights, strict=True):
            factors = (w, a) if self.weights_first else (a, w)
            acc = llvm("int32x4", self.intrinsic, acc, *factors)
        return acc
