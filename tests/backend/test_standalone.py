"""Standalone programs: no TVM, run natively and under qemu."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import tvm_backend
from fxquant import targets
from fxquant.errors import UnsupportedError
from fxquant.targets import Target
from tests.backend.integer_nets import NetBuilder, residual_net
from tests.backend.kernel_harness import require
from tests.backend.test_build import wide_net
from tvm_backend.lower import lower
from tvm_backend.memory_plan import ALIGNMENT, Lifetime, lifetimes, plan_memory
from tvm_backend.standalone import build_standalone

EACH = (
    targets.X86_VNNI,
    *(pytest.param(t, marks=pytest.mark.qemu) for t in (targets.CORTEX_A53, targets.ARMV7_NEON)),
    *(
        pytest.param(t, marks=[pytest.mark.qemu, pytest.mark.slow])
        for t in (targets.CORTEX_A55, targets.NEOVERSE_V1)
    ),
)


@pytest.mark.parametrize("target", EACH, ids=str)
def test_program_equals_reference(target: Target) -> None:
    require(target)
    graph, x = residual_net()
    compiled = tvm_backend.compile(graph, target)
    batch = torch.cat([x, -x])
    assert torch.equal(compiled.run_emulated(batch), graph(batch))


@pytest.mark.parametrize("target", EACH, ids=str)
def test_program_of_all_kinds_of_operators(target: Target) -> None:
    require(target)
    graph, x = wide_net()
    logits, (features,) = tvm_backend.compile(graph, target).run_emulated(x)
    expected_logits, (expected_features,) = graph(x)
    assert torch.equal(features, expected_features)
    assert torch.equal(logits, expected_logits)


@pytest.mark.parametrize("target", EACH, ids=str)
def test_kernels_need_nothing_but_libc(target: Target, tmp_path: Path) -> None:
    require(target)
    build_standalone(lower(residual_net()[0], target), tmp_path)
    tool = target.compiler.replace("gcc", "nm") if target.compiler else "nm"
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run(
        [tool, "-u", tmp_path / "kernels.o"], capture_output=True, text=True, check=True
    )
    symbols = {line.split()[-1] for line in done.stdout.splitlines()}
    assert symbols <= {"memset", "memcpy", "memmove"}


def test_float_islands_are_refused(tmp_path: Path) -> None:
    net = NetBuilder()
    q = net.quantize(net.input())
    real = net.call(torch.sigmoid, net.dequantize(q, 110))
    graph = net.finish(real, torch.randn(1, 3, 4, 4))
    with pytest.raises(UnsupportedError, match="float_sigmoid"):
        build_standalone(lower(graph, targets.X86_VNNI), tmp_path)


def test_memory_plan_separates_what_lives_together() -> None:
    values = lifetimes(lower(wide_net()[0], targets.X86_VNNI))
    plan = plan_memory(values)
    for i, a in enumerate(values):
        assert plan.offsets[a.name] % ALIGNMENT == 0
        for b in values[:i]:
            if a.overlaps(b):
                start_a, start_b = plan.offsets[a.name], plan.offsets[b.name]
                assert start_a + a.nbytes <= start_b or start_b + b.nbytes <= start_a
    assert plan.nbytes < sum(v.nbytes for v in values)


def test_memory_plan_reuses_gaps() -> None:
    values = [Lifetime("a", 128, 0, 1), Lifetime("b", 64, 1, 2), Lifetime("c", 64, 2, 3)]
    plan = plan_memory(values)
    assert plan.nbytes == 192
    assert plan.offsets["c"] == 0
