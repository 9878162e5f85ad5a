"""NEON without dot products: s8 x s8 -> int16 (exact: 2^14 fits), pairs added into int32.

With a chain, several products are summed in int16 first (`smlal`), as EasyQuant does (Wu et al.,
"EasyQuant: Post-training Quantization via Scale Optimization", 2020); `chain.py` proves it exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.macs.interleave import interleave_pairs
from tvm_backend.macs.vector import llvm, load, shuffle
from tvm_backend.tvm_api import T

LANES = 8


@dataclass(frozen=True, slots=True)
class ByteChain(ABC):
    """What multiplies 8 codes by 8 into int16 and sums chains of such products.

    Attributes:
        idiom: The idiom it implements.
    """

    idiom: MacIdiom

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """8 codes."""
        return load(buffer, offset, LANES)

    def extend(self, total: Any | None, activation: Any, weight: Any) -> Any:
        """A widening multiply; added to the chain without another instruction."""
        product = T.cast(activation, f"int16x{LANES}") * T.cast(weight, f"int16x{LANES}")
        return product if total is None else total + product

    @abstractmethod
    def finish(self, acc: Any, total: Any) -> Any:
        """The accumulator and the sum of a chain."""

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """A widening multiply a step, the end of a chain once a chain."""
        size = max(self.idiom.chain, 1)
        for first in range(0, len(weights), size):
            total = None
            steps = slice(first, first + size)
            for a, w in zip(activations[steps], weights[steps], strict=True):
                total = self.extend(total, a, w)
            acc = self.finish(acc, total)
        return acc


@dataclass(frozen=True, slots=True)
class WideningMultiply(ByteChain):
    """Widening multiply and pairwise add-accumulate.

    Attributes:
        pairwise_add: LLVM's name of the pairwise widening addition.
        accumulates: Whether that intrinsic takes the accumulator itself.
    """

    pairwise_add: str
    accumulates: bool

    @property
    def unroll(self) -> int:
        """One chain."""
        return max(self.idiom.chain, 2)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One 2-byte broadcast (`ld1r`) a step."""
        pairs = [T.reinterpret("int16", load(buffer, offset + 2 * i, 2)) for i in range(steps)]
        return [T.reinterpret("int8x8", T.broadcast(pair, 4)) for pair in pairs]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Two rows of bytes; a 128-bit register serves two vectors."""
        plain = [T.reinterpret(f"uint8x{4 * vectors}", row) for row in rows]
        pairs = interleave_pairs(plain[0], plain[1], 4, vectors)
        if vectors == 1:
            return [T.reinterpret("int8x8", pairs[0])]
        registers = [T.reinterpret("int8x16", pair) for pair in pairs]
        return [shuffle([r], range(i, i + 8)) for r in registers for i in (0, 8)]

    def finish(self, acc: Any, total: Any) -> Any:
        """A pairwise widening addition."""
        if self.accumulates:
            return llvm("int32x4", self.pairwise_add, acc, total)
        return acc + llvm("int32x4", self.pairwise_add, total)
