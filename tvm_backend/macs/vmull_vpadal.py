"""ARMv7 NEON: `vmull.s8`, chains with `vmlal.s8`, `vpadal.s16`."""

from fxquant.targets.idioms import VMLAL_VPADAL, VMULL_VPADAL
from tvm_backend.macs.widening import WideningMultiply

MACS = tuple(
    WideningMultiply(idiom, "llvm.arm.neon.vpadals.v4i32.v8i16", accumulates=True)
    for idiom in (VMULL_VPADAL, *VMLAL_VPADAL)
)
