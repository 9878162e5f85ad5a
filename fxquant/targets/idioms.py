"""The MAC idioms: one row an instruction sequence; each has a mirror file in tvm_backend/macs/."""

from fxquant.targets.base import MacIdiom

VPDPBUSD_512 = MacIdiom("vpdpbusd_512", 16, 4, signed_activations=False, registers=32)
PMADDWD_512 = MacIdiom("pmaddwd_512", 16, 2, signed_activations=False, registers=32)
PMADDWD_256 = MacIdiom("pmaddwd_256", 8, 2, signed_activations=False, registers=16)
SDOT = MacIdiom("sdot", 4, 4, signed_activations=True, registers=32)
USDOT = MacIdiom("usdot", 4, 4, signed_activations=False, registers=32)
SMULL_SADALP = MacIdiom("smull_sadalp", 4, 2, signed_activations=True, registers=32)
VMULL_VPADAL = MacIdiom("vmull_vpadal", 4, 2, signed_activations=True, registers=16)
WIDEN = MacIdiom("widen", 4, 1, signed_activations=False, registers=16)

ALL = (
    VPDPBUSD_512,
    PMADDWD_512,
    PMADDWD_256,
    SDOT,
    USDOT,
    SMULL_SADALP,
    VMULL_VPADAL,
    WIDEN,
)
