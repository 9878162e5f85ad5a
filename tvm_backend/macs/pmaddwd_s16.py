"""x86, activations in int16: that is what `pmaddwd` multiplies; weights are widened as they load.

For activations of 16 bits, and for those of 8 bits that a kernel has widened in its own buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxquant.targets import idioms
from tvm_backend.macs.pmaddwd import PMADDWD, Pmaddwd
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class PmaddwdS16(Pmaddwd):
    """pmaddwd on int16 activations: products have 23 bits, and a pair of them fits int32."""

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """A 4-byte broadcast a step."""
        words = [T.reinterpret("int32", load(buffer, offset + 2 * i, 2)) for i in range(steps)]
        lanes = self.idiom.lanes
        return [T.reinterpret(f"int16x{2 * lanes}", T.broadcast(word, lanes)) for word in words]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Two rows, element by element; accumulators in channel order."""
        lanes, count = self.idiom.lanes, vectors * self.idiom.lanes
        return [
            shuffle(rows, [row + i for i in range(first, first + lanes) for row in (0, count)])
            for first in range(0, count, lanes)
        ]


MAC_256 = PmaddwdS16(idioms.PMADDWD_S16_256, PMADDWD[8])
MAC_512 = PmaddwdS16(idioms.PMADDWD_S16_512, PMADDWD[16])

# By the idiom that the same target has for 8-bit activations.
MACS = {idioms.PMADDWD_256: MAC_256, idioms.PMADDWD_512: MAC_512}
