"""AVX512BW: `pmaddwd` on 512-bit registers."""

from fxquant.targets.idioms import PMADDWD_512
from tvm_backend.macs.pmaddwd import Pmaddwd

MAC = Pmaddwd(PMADDWD_512, "llvm.x86.avx512.pmaddw.d.512")
