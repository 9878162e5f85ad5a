"""Random small CNNs compiled: the kernels equal the reference bit for bit on every target."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from fxquant.config import Config
from fxquant.errors import TargetError
from fxquant.targets import (
    ALL,
    ARMV7_NEON,
    CORTEX_A53,
    CORTEX_A55,
    GENERIC,
    NEOVERSE_V1,
    X86_AVX2,
    X86_VNNI,
    Target,
)
from tests.graphs import quantize_model, tensors
from tests.random_graphs import RandomNet, low_bit_networks, mixed_networks, networks
from tests.tolerance import assert_same

pytest.importorskip("tvm", reason="the backend needs apache-tvm")
tvm_backend = pytest.importorskip("tvm_backend")
if not hasattr(tvm_backend, "compile"):
    pytest.skip("tvm_backend.compile is not part of this build", allow_module_level=True)

HOSTS = tuple(target for target in ALL if target.is_x86)
FOREIGN = (CORTEX_A53, CORTEX_A55, NEOVERSE_V1, ARMV7_NEON)
FEW = settings(max_examples=5, suppress_health_check=list(HealthCheck))


def probes(x: Tensor) -> tuple[Tensor, ...]:
    """The calibration inputs, others, and values far outside the calibrated range."""
    return x, x.flip(-1) * 0.7, x * 50, torch.full_like(x, float("inf"))


def check_equal(actual, expected) -> None:
    """Every output equal; float outputs are the same bits, being made from the same integers."""
    for i, (a, e) in enumerate(zip(tensors(actual), tensors(expected), strict=True)):
        assert_same(a, e, f"output {i}")


def host_or_skip(target: Target) -> None:
    """Skip where the build machine lacks the instruction set."""
    flags = set()
    try:
        with open("/proc/cpuinfo") as file:
            flags = {w for line in file if line.startswith("flags") for w in line.split()}
    except OSError:
        pass
    missing = [r for r in target.requires if r not in flags]
    if missing:
        pytest.skip(f"the host lacks {', '.join(missing)}")


@pytest.mark.isa
@pytest.mark.parametrize("target", HOSTS, ids=str)
def test_host_kernels_equal_the_reference(target: Target) -> None:
    host_or_skip(target)

    @FEW
    @given(networks())
    def run(case: tuple[RandomNet, Tensor]) -> None:
        model, x = case
        quantized = quantize_model(model, [x])
        compiled = tvm_backend.compile(quantized, target)
        for inputs in probes(x):
            check_equal(compiled(inputs), quantized.reference(inputs))

    run()


@pytest.mark.isa
@pytest.mark.parametrize("target", [X86_AVX2, X86_VNNI, GENERIC], ids=str)
def test_wide_kernels_equal_the_reference(target: Target) -> None:
    """16-bit activations, with some operators at 8 bits."""
    host_or_skip(target)

    @settings(FEW, max_examples=3)
    @given(mixed_networks())
    def run(case: tuple[RandomNet, Tensor, Config]) -> None:
        model, x, config = case
        quantized = quantize_model(model, [x], config)
        compiled = tvm_backend.compile(quantized, target)
        for inputs in probes(x):
            check_equal(compiled(inputs), quantized.reference(inputs))

    run()


@pytest.mark.isa
def test_low_bit_kernels_equal_the_reference() -> None:
    @FEW
    @given(low_bit_networks())
    def run(case: tuple[RandomNet, Tensor, Config]) -> None:
        model, x, config = case
        quantized = quantize_model(model, [x], config)
        check_equal(tvm_backend.compile(quantized, GENERIC)(x), quantized.reference(x))

    run()


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("target", FOREIGN, ids=str)
def test_emulated_kernels_equal_the_reference(target: Target) -> None:
    for tool in (target.emulator, target.compiler):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")

    @settings(FEW, max_examples=2)
    @given(mixed_networks())
    def run(case: tuple[RandomNet, Tensor, Config]) -> None:
        model, x, config = case
        quantized = quantize_model(model, [x])
        compiled = tvm_backend.compile(quantized, target)
        check_equal(compiled.run_emulated(x), quantized.reference(x))
        wide = quantize_model(model, [x], config)
        check_equal(tvm_backend.compile(wide, target).run_emulated(x), wide.reference(x))
        with pytest.raises(TargetError):
            compiled(x)  # foreign code does not run here

    run()
