"""The target taken for a machine is the best one it can run."""

from __future__ import annotations

import pytest

from fxquant import targets
from fxquant.targets import Target
from tvm_backend import devices, host_target

AVX2 = ("avx2",)
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl")
MACHINES = {
    "old": ("nehalem", (), targets.GENERIC),
    "haswell": ("haswell", AVX2, targets.X86_AVX2),
    "zen": ("znver1", (*AVX2, "sse4a"), targets.X86_ZEN1),
    "zen_3": ("znver3", (*AVX2, "sse4a"), targets.X86_AVX2),
    "alder_lake": ("alderlake", (*AVX2, "avx_vnni"), targets.X86_AVX_VNNI),
    "skylake": ("skylake-avx512", AVX512, targets.X86_AVX512),
    "cascade_lake": ("cascadelake", (*AVX512, "avx512_vnni"), targets.X86_VNNI),
    "zen_4": ("znver4", (*AVX512, "sse4a", "avx512_vnni"), targets.X86_VNNI),
    "sapphire_rapids": (
        "sapphirerapids", (*AVX512, "avx512_vnni", "avx_vnni", "amx_tile", "amx_int8"),
        targets.X86_AMX,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("processor", "flags", "expected"), MACHINES.values(), ids=MACHINES)
def test_the_host_gets_its_best_target(
    processor: str, flags: tuple[str, ...], expected: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_machine", lambda: "x86_64")
    monkeypatch.setattr(devices, "_processor", lambda: processor)
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(devices, "_may_use_tiles", lambda: True)
    assert host_target() is expected


def test_tiles_need_the_systems_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_machine", lambda: "x86_64")
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(targets.X86_AMX.requires))
    for permitted, expected in ((True, targets.X86_AMX), (False, targets.X86_VNNI)):
        monkeypatch.setattr(devices, "_may_use_tiles", lambda permitted=permitted: permitted)
        assert host_target() is expected


def test_llvm_knows_the_name_of_this_processor() -> None:
    processor = devices._processor()
    here = Target("here", (("mcpu", processor),), targets.GENERIC.mac, 128)
    assert devices.check_target(here).processor == processor
