"""ARMv7 NEON, depthwise: `vmull.s8`, chains with `vmlal.s8`, `vaddw.s16`."""

from fxquant.targets.idioms import VMLAL_VADDW
from tvm_backend.macs.taps import TapMultiply

MACS = tuple(TapMultiply(idiom) for idiom in VMLAL_VADDW)
