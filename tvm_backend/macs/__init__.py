"""One file a multiply-accumulate idiom of `fxquant.targets.idioms`, and the table of them."""

from __future__ import annotations

from dataclasses import replace

from fxquant.errors import TargetError
from fxquant.targets import MacIdiom, Target, idioms
from tvm_backend.macs import (
    pmaddubsw,
    pmaddwd_256,
    pmaddwd_512,
    pmaddwd_s16,
    sdot,
    smlal_s16,
    smlal_saddw,
    smull_sadalp,
    usdot,
    vmlal_vaddw,
    vmull_vpadal,
    vpdpbusd_256,
    vpdpbusd_512,
    vpdpwssd,
    widen_s16,
)
from tvm_backend.macs.base import Mac
from tvm_backend.macs.usmmla import Usmmla
from tvm_backend.macs.widen import Widen

MACS: dict[MacIdiom, Mac] = {
    idioms.VPDPBUSD_512: vpdpbusd_512.MAC,
    idioms.VPDPBUSD_256: vpdpbusd_256.MAC,
    idioms.PMADDWD_512: pmaddwd_512.MAC,
    idioms.PMADDWD_256: pmaddwd_256.MAC,
    idioms.PMADDWD_S16_512: pmaddwd_s16.MAC_512,
    idioms.PMADDWD_S16_256: pmaddwd_s16.MAC_256,
    idioms.VPDPWSSD_512: vpdpwssd.MAC_512,
    idioms.VPDPWSSD_256: vpdpwssd.MAC_256,
    idioms.SMLAL_S16: smlal_s16.MAC,
    idioms.VMLAL_S16: smlal_s16.MAC_ARMV7,
    idioms.SDOT: sdot.MAC,
    idioms.USDOT: usdot.MAC,
    idioms.USMMLA: Usmmla(),
    idioms.WIDEN: Widen(),
    **{
        mac.idiom: mac
        for macs in (
            pmaddubsw.MACS_256,
            pmaddubsw.MACS_512,
            smull_sadalp.MACS,
            smlal_saddw.MACS,
            vmull_vpadal.MACS,
            vmlal_vaddw.MACS,
        )
        for mac in macs
    },
}

_WORDS = {**pmaddwd_s16.MACS, **vpdpwssd.MACS, **smlal_s16.MACS}


def mac_of(idiom: MacIdiom) -> Mac:
    """The implementation of an idiom.

    Raises:
        TargetError: There is none.
    """
    if idiom not in MACS:
        raise TargetError(
            f"no implementation of the MAC idiom {idiom.name!r}",
            why="tvm_backend/macs has no entry equal to this description",
            remedy="use an idiom of fxquant.targets.idioms, or add its file to tvm_backend/macs",
        )
    return MACS[idiom]


def wide_mac_of(target: Target, accumulator: str) -> Mac:
    """The implementation for 16-bit activations, stored as int16; weights may be int16 too.

    Args:
        target: The device.
        accumulator: int32, int64, or uint32 for sums modulo 2^32.
    """
    if target.mac in _WORDS and accumulator != "int64":
        mac = _WORDS[target.mac]
        return mac if accumulator == "int32" else replace(mac, idiom=mac.idiom.modular)
    return widen_s16.widen(target.mac, accumulator)


def staged_macs_of(target: Target) -> tuple[Mac, ...]:
    """What multiplies 8-bit activations that a kernel has first widened to int16, if anything.

    It pays where the target's idiom widens them anyway, again for every block of output channels.
    """
    widening = (idioms.PMADDWD_256, idioms.PMADDWD_512)
    return (pmaddwd_s16.MACS[target.mac],) if target.mac in widening else ()


__all__ = ["MACS", "Mac", "mac_of", "staged_macs_of", "wide_mac_of"]
