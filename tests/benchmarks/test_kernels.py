"""The kernel benchmark: counts, tables, and that what is timed is the network."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

import fxquant
from benchmarks import kernels
from benchmarks.costs import kernel_bytes, node_macs, step_macs
from benchmarks.execution import Execution
from benchmarks.kernels import Layer, by_kind, kind, layers, table
from benchmarks.peak import peaks, tiles
from benchmarks.tile_peak import tile_peaks
from fxquant import targets
from fxquant.targets import idioms
from tests.backend.kernel_harness import from_storage, require
from tvm_backend import host_target
from tvm_backend.devices import missing_features
from tvm_backend.lower import lower
from tvm_backend.macs import mac_of
from tvm_backend.program import leaves


def test_macs_of_nodes(quantized: fxquant.Quantized) -> None:
    found = node_macs(quantized.integer)
    expected = [4 * 4 * 8 * 27, 4 * 4 * 8 * 9, 4 * 4 * 8 * 4 * 4, 4 * 5]
    assert sorted(found.values()) == sorted(expected)


def test_every_multiplication_is_in_one_step(quantized: fxquant.Quantized) -> None:
    program = lower(quantized.integer, host_target())
    found = node_macs(quantized.integer)
    counts = step_macs(program, found)
    assert len(counts) == len(program.steps) and sum(counts) == sum(found.values())


def test_bytes_of_a_kernel(quantized: fxquant.Quantized) -> None:
    step = lower(quantized.integer, targets.X86_AVX2).steps[0]
    constants = sum(array.nbytes for array in step.kernel.constants)
    expected = 8 * 8 * 3 * 4 + constants + step.kernel.output.size
    assert constants == 4 + 2 * 4  # the scale, and zero point and fill
    assert kernel_bytes(step.kernel) == expected


def test_what_is_timed_is_the_network(quantized: fxquant.Quantized) -> None:
    x = torch.randn(1, 3, 8, 8)
    program = lower(quantized.integer, host_target())
    execution = Execution(program, [x])
    seconds = execution.run()
    assert seconds.shape == (len(program.steps),) and (seconds > 0).all()
    (name,) = leaves(program.outputs)
    value = program.values[name]
    result = from_storage(execution.output(name).numpy(), value.storage, value.shape)
    assert torch.equal(result, quantized.integer(x))


def test_layers_and_table(quantized: fxquant.Quantized) -> None:
    program = lower(quantized.integer, host_target())
    counts = step_macs(program, node_macs(quantized.integer))
    seconds = np.full((3, len(counts)), 2e-6)
    seconds[0] = 1.0  # an interruption
    found = layers(program, counts, seconds, defaultdict(lambda: [1e12] * 3))
    assert [layer.macs for layer in found] == counts
    for layer in found:
        assert layer.microseconds == pytest.approx(2.0)
        assert layer.share == pytest.approx(layer.macs / 2e-6 / 1e12)
    text = table(found, {"sdot": 2000.0})
    assert len(text.splitlines()) == 3 + len(found) + len(by_kind(found))
    assert all(layer.node[-28:] in text for layer in found)


@pytest.mark.parametrize("target", [targets.X86_AVX2, targets.GENERIC], ids=lambda t: t.name)
def test_winograd_kernels_have_a_peak(target: targets.Target) -> None:
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).eval()
    layer = fxquant.quantize(convolution, [torch.randn(2, 64, 56, 56)], progress=False)
    [kernel] = [k for k in lower(layer.integer, target).kernels if "conv2d" in k]
    assert "winograd" in kernel
    mac = kernels.macs_of(target)[kernels.idiom_name(kernel)]
    if not missing_features(target):
        assert kernels.best_peak(peaks(target, mac, 1)[:1], calls=1) > 0


def test_kinds_of_kernels() -> None:
    names = {
        "qu8_qu8_qc8w_conv2d_1x27x27x32p1_1_1_1_1x27x27x128_k3x3__x": "conv2d",
        "s32_qu8_sum_pool2d_1x1x1x16_3c7__x": "sum_pool2d",
        "f32_s32_dequantize_1x10_5c__x": "dequantize",
        "qs8_qs8_local_response_norm_1x2x2x16_3__sdot": "local_response_norm",
        "": "float island",
    }
    assert {name: kind(name) for name in names} == names
    layer = Layer("n", "f32_s32_dequantize_1x10_5c__x", 0, 8, 2.0, 0.0)
    assert by_kind([layer, layer]) == {"dequantize": 4.0}
    assert layer.bandwidth == pytest.approx(8 / 2e-6 / 1e9) and layer.gops == 0.0


@pytest.mark.parametrize("idiom", idioms.ALL, ids=lambda i: i.name)
def test_peak_tiles_fit_the_registers(idiom: targets.MacIdiom) -> None:
    found = tiles(idiom)
    assert found and all(p * v + v < idiom.registers for p, v in found)


@pytest.mark.parametrize("threads", [1, 2])
def test_matrix_tiles_have_a_peak(threads: int) -> None:
    require(targets.X86_AMX)
    [peak] = tile_peaks(targets.X86_AMX, threads)
    assert peak.macs == threads * 128 * 4 * 4 * 16 * 16 * 64
    assert kernels.best_peak([peak], calls=1) > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_peaks_run_on_this_machine(monkeypatch, threads: int) -> None:
    monkeypatch.setattr("benchmarks.peak._MACS", 1 << 12)
    monkeypatch.setattr("benchmarks.peak._TILES", ((2, 2), (1, 3)))
    target = host_target()
    for idiom in (target.mac, *target.chains):
        for peak in peaks(target, mac_of(idiom), threads):
            assert peak.macs > 0
            peak.run()
            assert kernels.best_peak([peak], calls=1) > 0
