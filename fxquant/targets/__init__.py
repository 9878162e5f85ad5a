"""What devices can do: pure data, free of TVM. One constant a device family."""

from fxquant.targets.arm import ARMV7_NEON, CORTEX_A53, CORTEX_A55, CORTEX_A76, NEOVERSE_V1
from fxquant.targets.base import MacIdiom, Target, TileUnit
from fxquant.targets.generic import GENERIC
from fxquant.targets.x86 import (
    X86_AMX,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_VNNI,
    X86_ZEN1,
)

ALL = (
    X86_VNNI,
    X86_AMX,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_ZEN1,
    X86_AVX2,
    GENERIC,
    CORTEX_A53,
    CORTEX_A55,
    CORTEX_A76,
    NEOVERSE_V1,
    ARMV7_NEON,
)

__all__ = [
    "ALL",
    "ARMV7_NEON",
    "CORTEX_A53",
    "CORTEX_A55",
    "CORTEX_A76",
    "GENERIC",
    "NEOVERSE_V1",
    "X86_AMX",
    "X86_AVX2",
    "X86_AVX512",
    "X86_AVX_VNNI",
    "X86_VNNI",
    "X86_ZEN1",
    "MacIdiom",
    "Target",
    "TileUnit",
]
