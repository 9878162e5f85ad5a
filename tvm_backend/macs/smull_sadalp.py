"""ARMv8.0: `smull`, `sadalp` (LLVM fuses `saddlp` and `add`)."""

from fxquant.targets.idioms import SMULL_SADALP
from tvm_backend.macs.widening import WideningMultiply

MAC = WideningMultiply(SMULL_SADALP, "llvm.aarch64.neon.saddlp.v4i32.v8i16", accumulates=False)
