"""ARMv8.0, depthwise: `smull`, chains with `smlal`, `saddw` and `saddw2`."""

from fxquant.targets.idioms import SMLAL_SADDW
from tvm_backend.macs.taps import TapMultiply

MACS = tuple(TapMultiply(idiom) for idiom in SMLAL_SADDW)
