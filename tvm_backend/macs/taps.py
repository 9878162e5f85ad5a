"""NEON without dot products, depthwise: a tap of eight channels is one widening multiply.

Nothing is interleaved, because each lane has one product a step. Products of several taps are
summed in int16 first; `chain.py` proves it exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_backend.macs.vector import load, shuffle
from tvm_backend.macs.widening import LANES, ByteChain
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class TapMultiply(ByteChain):
    """s8 x s8 -> int16 sums of a chain, added into int32 (`saddw`, `saddw2`)."""

    @property
    def unroll(self) -> int:
        """One chain."""
        return self.idiom.chain

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One broadcast byte a step."""
        return [T.broadcast(load(buffer, offset + i, 1), LANES) for i in range(steps)]

    def finish(self, acc: Any, total: Any) -> Any:
        """Two widening additions."""
        return acc + T.cast(total, f"int32x{LANES}")

    def halves(self, acc: Any) -> list[Any]:
        """The accumulator as two vectors of four lanes."""
        return [shuffle([acc], range(i, i + LANES // 2)) for i in (0, LANES // 2)]
