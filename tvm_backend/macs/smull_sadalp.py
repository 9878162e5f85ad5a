"""ARMv8.0: `smull`, chains with `smlal`, `sadalp` (LLVM fuses `saddlp` and `add`)."""

from fxquant.targets.idioms import SMLAL_SADALP, SMULL_SADALP
from tvm_backend.macs.widening import WideningMultiply

MACS = tuple(
    WideningMultiply(idiom, "llvm.aarch64.neon.saddlp.v4i32.v8i16", accumulates=False)
    for idiom in (SMULL_SADALP, *SMLAL_SADALP)
)
