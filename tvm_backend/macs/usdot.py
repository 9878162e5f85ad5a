"""ARMv8.6 i8mm: `usdot`, u8 x s8."""

from fxquant.targets.idioms import USDOT
from tvm_backend.macs.dot_product import DotProduct

MAC = DotProduct(USDOT, "llvm.aarch64.neon.usdot.v4i32.v16i8", weights_first=False)
