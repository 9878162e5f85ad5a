"""Calibration where the model is: the same codes on an accelerator, and nothing left there.

The accelerator is a fake that refuses what CUDA refuses (tests/fake_accelerator.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn

import fxquant
from fxquant.errors import CaptureError
from fxquant.ir import meta
from fxquant.ir.device import CPU, working_on
from fxquant.recipes import CodingLength, Sensitivity, allocate_bits
from fxquant.recipes.allocation import Method
from fxquant.solvers import (
    BRECQ,
    GPTQ,
    UWC,
    ActivationEqualization,
    ActivationSteps,
    AdaRound,
    AttentionRound,
    BiasCorrection,
    BitSplit,
    CoordinateDescent,
    CrossLayerEqualization,
    EasyQuant,
    NetworkTuning,
    QDrop,
    RoundToNearest,
)
from fxquant.solvers.attention_round import Attention
from fxquant.solvers.driver import _Driver
from fxquant.solvers.reconstruct import Reconstruction
from tests.fake_accelerator import CUDA, Accelerated, accelerator
from tests.zoo import conv_bn

X = torch.randn(12, 3, 9, 7, generator=torch.Generator().manual_seed(3))
QUICK = {"iterations": 4, "batch": 4, "window": 4, "held_back": 4, "judgements": 1}


class Net(nn.Module):
    """A sum, a depthwise layer, a constant, and float operators that ask for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = conv_bn(3, 4, 1, nn.ReLU6()), conv_bn(4, 4)
        self.depthwise, self.fc = conv_bn(4, 4, act=nn.ReLU(), groups=4), nn.Linear(4, 3)
        self.register_buffer("shift", torch.linspace(0, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x + self.shift)
        x = self.depthwise(F.relu(self.conv(x) + x))
        x = torch.minimum(x, torch.full((7,), torch.inf, device=x.device))  # not folded
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def learned(kind: type[Reconstruction], **settings) -> Reconstruction:
    """A learned solver with a handful of steps."""
    default = kind()
    return replace(default, training=replace(default.training, **QUICK, **settings))


SOLVERS = {
    "nearest": (RoundToNearest(scale="mse"), BiasCorrection()),
    "easyquant": EasyQuant(candidates=3, positions=40, rounds=2),
    "bit_split": BitSplit(rows=100, epochs=1, damping=0.1, match_deviation=True),
    "gptq": GPTQ(rows=100, damping=0.1, passes=1, starts=(1.0, 0.9), polish=0),
    "coordinate_descent": CoordinateDescent(rows=100, epochs=1),
    "uwc": (CrossLayerEqualization(), learned(UWC)),
    "attention": replace(learned(AttentionRound), rounding=Attention(spread=0.1)),
    "adaround": learned(AdaRound),
    "brecq": (learned(BRECQ), learned(ActivationSteps)),
    "qdrop": (ActivationEqualization(), learned(QDrop)),
    "network_tuning": (RoundToNearest(), learned(NetworkTuning, loss="kl")),
}


def calibrated(device: torch.device, name: str = "nearest", **options) -> fxquant.Quantized:
    """The network quantized where it is put; half of the data is there as well."""
    model = net().to(device)
    prepared = fxquant.prepare(model, X[:1].to(device), fxquant.W4A8)
    data = [X[:6], X[6:].to(device)]
    fxquant.calibrate(prepared, data, SOLVERS[name], progress=False, **options)
    assert {t.device for t in model.state_dict().values()} == {device}  # the caller's is left
    return fxquant.convert(prepared)


@cache
def on_cpu(name: str = "nearest") -> fxquant.Quantized:
    return calibrated(CPU, name)


def tensors(quantized: fxquant.Quantized) -> Iterator[Tensor]:
    """All that a quantized network holds."""
    gm = quantized.calibrated
    yield from (*gm.parameters(), *gm.buffers())
    for node in gm.graph.nodes:
        value, factors = meta.quant(node), meta.channel_factors(node)
        if value is not None and value.qparams is not None:
            yield from (value.qparams.scale, value.qparams.zero_point)
        if factors is not None:
            yield factors


def check_same(actual: fxquant.Quantized, expected: fxquant.Quantized) -> None:
    """The same integers, scales and biases, on the CPU; both run there."""
    pairs = list(zip(tensors(actual), tensors(expected), strict=True))
    assert pairs
    for a, b in pairs:
        assert not isinstance(a, Accelerated) and a.device.type == "cpu"
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert actual.notes == expected.notes
    assert torch.equal(actual.reference(X[:2]), expected.reference(X[:2]))


@pytest.mark.parametrize("name", SOLVERS)
def test_same_result_on_the_accelerator(name: str) -> None:
    with accelerator():
        actual = calibrated(CUDA, name)
    check_same(actual, on_cpu(name))


def test_activations_in_files() -> None:
    """They are the CPU's; batches of them are moved."""
    with accelerator():
        actual = calibrated(CUDA, "qdrop", memory=1)
    check_same(actual, calibrated(CPU, "qdrop", memory=1))


def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    solve, calls = _Driver._solve, iter(range(100))

    def interrupted(self, region, steps):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return solve(self, region, steps)

    monkeypatch.setattr(_Driver, "_solve", interrupted)
    with accelerator():
        prepared = fxquant.prepare(net().to(CUDA), X[:1], fxquant.W4A8)
        assert prepared(X[:6]).device == CUDA
        prepared(X[6:])
        with pytest.raises(KeyboardInterrupt):
            fxquant.calibrate(prepared, None, SOLVERS["nearest"], progress=False)
        (record,) = prepared.finished.values()
        held = [w.codes for w in record.weights.values()] + list(record.biases.values())
        assert held and not any(isinstance(t, Accelerated) for t in held)
        fxquant.calibrate(prepared, None, SOLVERS["nearest"], progress=False)
        check_same(fxquant.convert(prepared), on_cpu())


def test_a_checkpoint_of_the_accelerator_serves_the_cpu(tmp_path: Path) -> None:
    with accelerator():
        calibrated(CUDA, checkpoint=tmp_path)
    check_same(calibrated(CPU, checkpoint=tmp_path), on_cpu())


@pytest.mark.parametrize("method", [CodingLength(), Sensitivity(samples=4)], ids=["rate", "noise"])
def test_same_bits_on_the_accelerator(method: Method) -> None:
    options = {"method": method, "data": [X], "progress": False}
    with accelerator():
        actual = allocate_bits(net().to(CUDA), X[:1].to(CUDA), **options)
    assert actual.layers == allocate_bits(net(), X[:1], **options).layers


def test_a_tensor_on_the_other_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: solvers create on the CPU."""
    monkeypatch.setattr("fxquant.prepared.working_on", lambda device: nullcontext())
    with accelerator(), pytest.raises(RuntimeError, match="on the same device"):
        calibrated(CUDA)


def test_a_model_on_two_devices_is_refused() -> None:
    with accelerator():
        model = net()
        model.fc.to(CUDA)
        with pytest.raises(CaptureError, match=r"several devices\n.*on cpu, fc.weight on cuda:0"):
            fxquant.prepare(model, X[:1])


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(CaptureError, match="no values"):
        fxquant.prepare(net().to("meta"), X[:1])


def test_settings_of_cudnn_come_back() -> None:
    before = cudnn.deterministic, cudnn.conv.fp32_precision
    with pytest.raises(KeyError), working_on(CUDA):
        assert (cudnn.deterministic, cudnn.conv.fp32_precision) == (True, "ieee")
        raise KeyError
    assert (cudnn.deterministic, cudnn.conv.fp32_precision) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SOLVERS)
def test_cuda(name: str) -> None:
    """A real device adds in another order: codes may differ, the error hardly."""
    actual, expected, model = calibrated(CUDA, name), on_cpu(name), net()
    assert all(t.device == CPU for t in tensors(actual))
    with torch.no_grad():
        errors = [float((q(X) - model(X)).square().mean()) for q in (actual, expected)]
    assert errors[0] < 1.5 * errors[1]
