"""AVX2: `pmaddwd` on 256-bit registers."""

from fxquant.targets.idioms import PMADDWD_256
from tvm_backend.macs.pmaddwd import PMADDWD, Pmaddwd

MAC = Pmaddwd(PMADDWD_256, PMADDWD[8])
