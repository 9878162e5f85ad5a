"""AVX2: `pmaddwd` on 256-bit registers."""

from fxquant.targets.idioms import PMADDWD_256
from tvm_backend.macs.pmaddwd import Pmaddwd

MAC = Pmaddwd(PMADDWD_256, "llvm.x86.avx2.pmadd.wd")
