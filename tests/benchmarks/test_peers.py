"""The engines that latencies are compared with get the settings that suit them."""

from __future__ import annotations

import pytest

from benchmarks.peers import x64_precision


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ({"avx2", "avx512bw"}, "1"),
        ({"avx2", "avx_vnni"}, "0"),
        ({"avx512bw", "avx512_vnni"}, "0"),
        (set(), "1"),
    ],
)
def test_onnx_runtime_avoids_saturation_only_without_vnni(flags: set[str], value: str) -> None:
    assert x64_precision(flags) == value
