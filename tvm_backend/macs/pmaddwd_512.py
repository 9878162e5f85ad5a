"""AVX512BW: `pmaddwd` on 512-bit registers."""

from fxquant.targets.idioms import PMADDWD_512
from tvm_backend.macs.pmaddwd import PMADDWD, Pmaddwd

MAC = Pmaddwd(PMADDWD_512, PMADDWD[16])
