"""x86-64 with AVX2 (and its slow form of Zen 1), AVX-VNNI, AVX-512, AVX512-VNNI and AMX."""

from dataclasses import replace

from fxquant.targets.base import Target
from fxquant.targets.idioms import (
    PMADDUBSW_256,
    PMADDUBSW_512,
    PMADDWD_256,
    PMADDWD_512,
    TDPBUSD,
    VPDPBUSD_256,
    VPDPBUSD_512,
)

# For some processors LLVM takes `vpdpwssd` apart again to shorten a chain of sums. Ours run side by
# side, so that only the number of instructions counts.
_WHOLE = "+fast-dpwssd"

X86_VNNI = Target(
    "x86_vnni",
    (("mtriple", "x86_64-linux-gnu"), ("mcpu", "cascadelake"), ("mattr", (_WHOLE,))),
    VPDPBUSD_512,
    512,
    requires=("avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
)
# Tuned as its predecessors: for Sapphire Rapids LLVM prefers vectors of 256 bits.
X86_AMX = Target(
    "x86_amx",
    (
        ("mtriple", "x86_64-linux-gnu"),
        ("mcpu", "cascadelake"),
        ("mattr", (_WHOLE, "+amx-tile", "+amx-int8")),
    ),
    VPDPBUSD_512,
    512,
    requires=(*X86_VNNI.requires, "amx_tile", "amx_int8"),
    tiles=TDPBUSD,
)
X86_AVX512 = Target(
    "x86_avx512",
    (("mtriple", "x86_64-linux-gnu"), ("mcpu", "skylake-avx512")),
    PMADDWD_512,
    512,
    requires=("avx512f", "avx512bw", "avx512vl"),
    chains=PMADDUBSW_512,
)
X86_AVX_VNNI = Target(
    "x86_avx_vnni",
    (("mtriple", "x86_64-linux-gnu"), ("mcpu", "alderlake"), ("mattr", (_WHOLE,))),
    VPDPBUSD_256,
    256,
    requires=("avx2", "avx_vnni"),
)
X86_AVX2 = Target(
    "x86_avx2",
    (("mtriple", "x86_64-linux-gnu"), ("mcpu", "haswell")),
    PMADDWD_256,
    256,
    requires=("avx2",),
    chains=PMADDUBSW_256,
)
# One unit multiplies. To widen the sum of a chain is a multiplication too, so that a chain of one
# step takes the turns it saves: at most 38.7 GOP/s, before the steps that are repeated for large
# weights, against 40.5 with widened activations (measured).
X86_ZEN1 = replace(
    X86_AVX2,
    name="x86_zen1",
    llvm=(("mtriple", "x86_64-linux-gnu"), ("mcpu", "znver1")),
    requires=("avx2", "sse4a"),
    chains=tuple(idiom for idiom in PMADDUBSW_256 if idiom.chain > 1),
    half_width=True,
)
