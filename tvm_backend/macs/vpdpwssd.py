"""x86 with VNNI, activations in int16: `vpdpwssd` sums 2 products into each int32 lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import idioms
from tvm_backend.macs.pmaddwd_s16 import PmaddwdS16
from tvm_backend.macs.vector import llvm
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Vpdpwssd(PmaddwdS16):
    """vpdpwssd on any register width; operands and sums as of `pmaddwd` on int16 activations."""

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """One instruction a step."""
        lanes = self.idiom.lanes
        acc = T.reinterpret(f"int32x{lanes}", acc)
        for a, w in zip(activations, weights, strict=True):
            acc = llvm(f"int32x{lanes}", self.intrinsic, acc, a, w)
        return T.reinterpret(f"{self.idiom.accumulator}x{lanes}", acc)


MAC_256 = Vpdpwssd(idioms.VPDPWSSD_256, "llvm.x86.avx512.vpdpwssd.256")
MAC_512 = Vpdpwssd(idioms.VPDPWSSD_512, "llvm.x86.avx512.vpdpwssd.512")

# By the idiom that the same target has for 8-bit activations.
MACS = {idioms.VPDPBUSD_512: MAC_512, idioms.VPDPBUSD_256: MAC_256}
