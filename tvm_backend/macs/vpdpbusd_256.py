"""AVX-VNNI: `vpdpbusd` on 256-bit registers, in the encoding of AVX."""

from fxquant.targets.idioms import VPDPBUSD_256
from tvm_backend.macs.vpdpbusd import Vpdpbusd

MAC = Vpdpbusd(VPDPBUSD_256, "llvm.x86.avx512.vpdpbusd.256")
