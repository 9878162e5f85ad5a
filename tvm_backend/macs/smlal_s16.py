"""NEON, activations in int16: `smlal` (ARMv7: `vmlal`) sums s16 x s16 into each int32 lane.

A register has the activations of four steps; the instruction picks one of them by its index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxquant.targets import idioms
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.macs.widen_s16 import WidenS16
from tvm_backend.tvm_api import T

_STEPS = 4


@dataclass(frozen=True, slots=True)
class SmlalS16(WidenS16):
    """Plain products, but operands stay int16 until they are multiplied."""

    unroll: int = _STEPS

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """Codes as int16."""
        lanes = self.idiom.lanes
        return T.cast(load(buffer, offset, lanes), f"int16x{lanes}")

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One load of 8 bytes whose elements LLVM folds into products by index; or one `ld1r`."""
        if steps == 1:
            return [T.broadcast(buffer[offset], self.idiom.lanes)]
        register = T.Bind(load(buffer, offset, _STEPS))
        return [shuffle([register], [i] * self.idiom.lanes) for i in range(steps)]


MAC = SmlalS16(idioms.SMLAL_S16)
MAC_ARMV7 = SmlalS16(idioms.VMLAL_S16)

# By the idiom that the same target has for 8-bit activations.
MACS = {
    idioms.SMULL_SADALP: MAC,
    idioms.SDOT: MAC,
    idioms.USDOT: MAC,
    idioms.VMULL_VPADAL: MAC_ARMV7,
}
