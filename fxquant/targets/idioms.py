"""The MAC idioms and matrix units: one row each, and a mirror file in tvm_backend/macs/."""

from dataclasses import replace

from fxquant.targets.base import MacIdiom, TileUnit

VPDPBUSD_512 = MacIdiom("vpdpbusd_512", 16, 4, signed_activations=False, registers=32)
VPDPBUSD_256 = MacIdiom("vpdpbusd_256", 8, 4, signed_activations=False, registers=16)
PMADDWD_512 = MacIdiom("pmaddwd_512", 16, 2, signed_activations=False, registers=32)
PMADDWD_256 = MacIdiom("pmaddwd_256", 8, 2, signed_activations=False, registers=16)
PMADDWD_S16_512 = MacIdiom("pmaddwd_s16_512", 16, 2, True, registers=32, activation_bits=16)
PMADDWD_S16_256 = MacIdiom("pmaddwd_s16_256", 8, 2, True, registers=16, activation_bits=16)
VPDPWSSD_512 = MacIdiom("vpdpwssd_512", 16, 2, True, registers=32, activation_bits=16)
VPDPWSSD_256 = MacIdiom("vpdpwssd_256", 8, 2, True, registers=16, activation_bits=16)
SDOT = MacIdiom("sdot", 4, 4, signed_activations=True, registers=32)
USDOT = MacIdiom("usdot", 4, 4, signed_activations=False, registers=32)
USMMLA = MacIdiom("usmmla", 4, 8, signed_activations=False, registers=32, pixels=2)
SMULL_SADALP = MacIdiom("smull_sadalp", 4, 2, signed_activations=True, registers=32)
VMULL_VPADAL = MacIdiom("vmull_vpadal", 4, 2, signed_activations=True, registers=16)
SMLAL_S16 = MacIdiom("smlal_s16", 4, 1, True, registers=32, activation_bits=16)
VMLAL_S16 = MacIdiom("vmlal_s16", 4, 1, True, registers=16, activation_bits=16)
WIDEN = MacIdiom("widen", 4, 1, signed_activations=False, registers=16)
TDPBUSD = TileUnit("tdpbusd", rows=16, lanes=16, depth=64, reduction=4)


def _chains(like: MacIdiom, name: str, reduction: int, *steps: int) -> tuple[MacIdiom, ...]:
    """The idiom with int16 chains of as many steps, for devices that have the idiom `like`."""
    return tuple(
        replace(like, name=f"{name}_x{chain}", reduction=reduction, chain=chain) for chain in steps
    )


PMADDUBSW_512 = _chains(PMADDWD_512, "pmaddubsw_512", 4, 4, 2, 1)
PMADDUBSW_256 = _chains(PMADDWD_256, "pmaddubsw_256", 4, 4, 2, 1)
SMLAL_SADALP = _chains(SMULL_SADALP, "smlal_sadalp", 2, 8, 4, 2)
VMLAL_VPADAL = _chains(VMULL_VPADAL, "vmlal_vpadal", 2, 8, 4, 2)
_TAPS = (25, 13, 9, 5, 3, 2)  # 3x3 in 1, 2, 3 and 5 chains, 5x5 in 1, 2, 3, 5, 9 and 13
SMLAL_SADDW = _chains(replace(SMULL_SADALP, lanes=8), "smlal_saddw", 1, *_TAPS)
VMLAL_VADDW = _chains(replace(VMULL_VPADAL, lanes=8), "vmlal_vaddw", 1, *_TAPS)

ALL = (
    VPDPBUSD_512,
    VPDPBUSD_256,
    PMADDWD_512,
    PMADDWD_256,
    PMADDWD_S16_512,
    PMADDWD_S16_256,
    VPDPWSSD_512,
    VPDPWSSD_256,
    SDOT,
    USDOT,
    USMMLA,
    SMULL_SADALP,
    VMULL_VPADAL,
    SMLAL_S16,
    VMLAL_S16,
    WIDEN,
    *PMADDUBSW_512,
    *PMADDUBSW_256,
    *SMLAL_SADALP,
    *VMLAL_VPADAL,
    *SMLAL_SADDW,
    *VMLAL_VADDW,
)

UNITS = (TDPBUSD,)
