"""NEON without dot products, depthwise: a tap of eight channels is one widening multiply.

Nothing is interleaved, because each lane has one product a step. Products of several taps are
summed in int16 first; `chain.py` proves it exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.tvm_api import T

LANES = 8


@dataclass(frozen=True, slots=True)
class TapMultiply:
    """s8 x s8 -> int16 sums of a chain, added into int32 (`saddw`, `saddw2`).

    Attributes:
        idiom: The idiom it implements.
    """

    idiom: MacIdiom

    @property
    def unroll(self) -> int:
        """One chain."""
        return self.idiom.chain

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """8 codes."""
        return load(buffer, offset, LANES)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One broadcast byte a step."""
        return [T.broadcast(load(buffer, offset + i, 1), LANES) for i in range(steps)]

    def extend(self, total: Any | None, activation: Any, weight: Any) -> Any:
        """A widening multiply; added to the chain without another instruction."""
        product = T.cast(activation, f"int16x{LANES}") * T.cast(weight, f"int16x{LANES}")
        return product if total is None else total + product

    def finish(self, acc: Any, total: Any) -> Any:
        """Two widening additions."""
        return acc + T.cast(total, f"int32x{LANES}")

    def halves(self, acc: Any) -> list[Any]:
        """The accumulator as two vectors of four lanes."""
        return [shuffle([acc], range(i, i + LANES // 2)) for i in (0, LANES // 2)]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """A widening multiply a step, two additions a chain."""
        for first in range(0, len(weights), self.idiom.chain):
            total = None
            steps = slice(first, first + self.idiom.chain)
            for a, w in zip(activations[steps], weights[steps], strict=True):
                total = self.extend(total, a, w)
            acc = self.finish(acc, total)
        return acc
