"""ARM: 64-bit cores from Cortex-A53 up, and ARMv7 with NEON."""

from fxquant.targets.base import Target
from fxquant.targets.idioms import (
    SDOT,
    SMLAL_SADALP,
    SMLAL_SADDW,
    SMULL_SADALP,
    USDOT,
    USMMLA,
    VMLAL_VADDW,
    VMLAL_VPADAL,
    VMULL_VPADAL,
)

_A64 = ("mtriple", "aarch64-linux-gnu")
_GCC = "aarch64-linux-gnu-gcc"

CORTEX_A53 = Target(
    "cortex_a53", (_A64, ("mcpu", "cortex-a53")), SMULL_SADALP, 128, ("asimd",),
    "qemu-aarch64", _GCC, SMLAL_SADALP, taps=SMLAL_SADDW,
)  # fmt: skip
CORTEX_A55 = Target(
    "cortex_a55", (_A64, ("mcpu", "cortex-a55")), SDOT, 128, ("asimddp",), "qemu-aarch64", _GCC
)
CORTEX_A76 = Target(
    "cortex_a76", (_A64, ("mcpu", "cortex-a76")), SDOT, 128, ("asimddp",), "qemu-aarch64", _GCC
)
NEOVERSE_V1 = Target(
    "neoverse_v1", (_A64, ("mcpu", "neoverse-v1")), USDOT, 128, ("i8mm",), "qemu-aarch64", _GCC,
    matrix=(USMMLA,),
)  # fmt: skip
ARMV7_NEON = Target(
    "armv7_neon",
    (
        ("mtriple", "armv7a-linux-gnueabihf"),
        ("mcpu", "cortex-a7"),
        ("mattr", ("+neon",)),
        ("mfloat-abi", "hard"),
    ),
    VMULL_VPADAL,
    128,
    ("neon",),
    "qemu-arm",
    "arm-linux-gnueabihf-gcc",
    VMLAL_VPADAL,
    taps=VMLAL_VADDW,
)
