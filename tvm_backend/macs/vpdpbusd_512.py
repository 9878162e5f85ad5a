"""AVX512-VNNI: `vpdpbusd` on 512-bit registers."""

from fxquant.targets.idioms import VPDPBUSD_512
from tvm_backend.macs.vpdpbusd import Vpdpbusd

MAC = Vpdpbusd(VPDPBUSD_512, "llvm.x86.avx512.vpdpbusd.512")
