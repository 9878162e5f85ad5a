"""ARMv8.2 dotprod: `sdot`, s8 x s8."""

from fxquant.targets.idioms import SDOT
from tvm_backend.macs.dot_product import DotProduct

MAC = DotProduct(SDOT, "llvm.aarch64.neon.sdot.v4i32.v16i8", weights_first=True)
