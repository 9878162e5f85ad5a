"""ARMv7 NEON: `vmull.s8`, `vpadal.s16`."""

from fxquant.targets.idioms import VMULL_VPADAL
from tvm_backend.macs.widening import WideningMultiply

MAC = WideningMultiply(VMULL_VPADAL, "llvm.arm.neon.vpadals.v4i32.v8i16", accumulates=True)
