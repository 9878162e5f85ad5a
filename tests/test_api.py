"""prepare, calibrate, convert, quantize: the ways to call them, and the errors they raise."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxquant
from fxquant.config import Config, OpConfig
from fxquant.errors import (
    CalibrationError,
    CaptureError,
    ConfigError,
    FxQuantError,
    StageError,
    TargetError,
)
from tests.graphs import check_per_operator, signal_to_noise
from tests.tolerance import assert_same
from tests.zoo import BY_NAME

X = torch.randn(12, 3, 9, 7, generator=torch.Generator().manual_seed(3))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(5 * 5 * 4, 3),
    ).eval()  # fmt: skip


def prepared(**kwargs) -> fxquant.Prepared:
    return fxquant.prepare(small(), X[:1], **kwargs)


def calibrated(data, **kwargs) -> fxquant.Quantized:
    return fxquant.convert(fxquant.calibrate(prepared(), data, progress=False, **kwargs))


def codes(quantized: fxquant.Quantized) -> list[Tensor]:
    """All tensors of the integer graph: the bytes a device would get."""
    gm = quantized.integer
    return [*gm.parameters(), *gm.buffers()]


def same_codes(a: fxquant.Quantized, b: fxquant.Quantized) -> bool:
    pairs = list(zip(codes(a), codes(b), strict=True))
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


@cache
def reference_result() -> fxquant.Quantized:
    return calibrated([X[:6], X[6:]])


LABELS = torch.zeros(6, dtype=torch.int64)
SOURCES = {
    "list": lambda: [X[:6], X[6:]],
    "generator": lambda: (b for b in (X[:6], X[6:])),
    "tuples": lambda: [(X[:6],), [X[6:]]],
    "labels": lambda: [(X[:6], LABELS), (X[6:], LABELS)],
    "loader": lambda: DataLoader(TensorDataset(X), batch_size=6),
    "labelled_loader": lambda: DataLoader(TensorDataset(X, torch.zeros(12)), batch_size=6),
}


@pytest.mark.parametrize("source", SOURCES)
def test_calibration_data_comes_in_many_forms(source: str) -> None:
    assert same_codes(calibrated(SOURCES[source]()), reference_result())


def test_one_tensor_is_one_batch() -> None:
    assert signal_to_noise(small()(X).detach(), calibrated(X).reference(X)) > 30


def test_observing_by_hand_equals_calibrate() -> None:
    manual = prepared()
    for batch in (X[:6], X[6:]):
        out = manual(batch)
        torch.testing.assert_close(out, small()(batch).detach(), rtol=1e-4, atol=1e-5)
    assert same_codes(fxquant.convert(manual), reference_result())


def test_quantize_is_the_whole_line() -> None:
    assert same_codes(fxquant.quantize(small(), [X[:6], X[6:]], progress=False), reference_result())
    loader = DataLoader(TensorDataset(X, torch.zeros(12)), batch_size=6)
    target = fxquant.targets.X86_VNNI
    result = fxquant.quantize(small(), loader, target=target, progress=False)
    assert same_codes(result, reference_result())


def test_progress_bar_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    fxquant.quantize(small(), [X])
    captured = capsys.readouterr()
    assert captured.out == "" and "calibrate" in captured.err


def test_same_seed_same_codes() -> None:
    assert same_codes(calibrated([X], seed=7), calibrated([X], seed=7))


def test_same_data_same_sample() -> None:
    """With more samples than the solver keeps, the choice among them is reproducible."""
    model = nn.Conv2d(3, 2, 1).eval()
    many = [X[:, :, :2, :2] * (1 + 0.01 * i) for i in range(30)]
    results = [fxquant.quantize(model, many, progress=False) for _ in range(2)]
    assert results[0].provenance["samples"] == 360 and same_codes(*results)


def test_convert_twice_gives_independent_equal_results() -> None:
    ready = fxquant.calibrate(prepared(), [X], progress=False)
    first, second = fxquant.convert(ready), fxquant.convert(ready)
    assert first.calibrated is not second.calibrated
    assert same_codes(first, second)


def test_printing_gives_a_table() -> None:
    text = str(reference_result())
    lines = text.splitlines()
    assert lines[0].split() == ["node", "op", "shape", "weight", "result", "note"]
    assert any("conv2d" in line and "s8n" in line and "u8" in line for line in lines)
    assert len({line.index("op") for line in lines[:1]}) == 1 and "float" in lines[-1]
    island = fxquant.quantize(BY_NAME["softmax_island"].make(), [X], progress=False)
    assert "softmax has no integer form" in str(island)
    assert [i.operator for i in island.float_islands] == ["softmax"]


def test_prepared_prints_its_units() -> None:
    prepared = fxquant.prepare(BY_NAME["softmax_island"].make(), X)
    text = str(prepared)
    assert len(prepared.units) >= 2
    assert all(unit.name in text for unit in prepared.units)
    assert "float: softmax has no integer form" in text and ": u8" in text


def test_provenance_is_recorded() -> None:
    provenance = reference_result().provenance
    assert provenance["fxquant"] == fxquant.__version__
    assert provenance["samples"] == 12 and "GPTQ" in provenance["solver"]


# Errors of prepare


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var", "6.weight"])
def test_non_finite_parameters(name: str, bad: float) -> None:
    model = small()
    model.state_dict()[name].view(-1)[0] = bad
    with pytest.raises(CaptureError, match="NaN or infinite"):
        fxquant.prepare(model, X[:1])


def test_target_must_be_a_target() -> None:
    with pytest.raises(TargetError, match=r"fxquant\.targets"):
        fxquant.prepare(small(), X[:1], target="x86")  # type: ignore[arg-type]


# Errors of calibration


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 9, 8), "has shape"),
        (torch.zeros(2, 4, 9, 7), "has shape"),
        (torch.zeros(3, 9, 7), "has shape"),
        (torch.zeros(2, 3, 9, 7, dtype=torch.uint8), "dtype"),
        (torch.zeros(2, 3, 9, 7, dtype=torch.int64), "dtype"),
        (torch.full((2, 3, 9, 7), math.nan), "NaN or infinite"),
        (torch.full((2, 3, 9, 7), -math.inf), "NaN or infinite"),
        ((), "has 0 tensors"),
        (("image.png", 3), "has 0 tensors"),
        ({"image": X}, "has 0 tensors"),
    ],
    ids=["width", "channels", "rank", "uint8", "int64", "nan", "inf", "empty", "strings", "dict"],
)
def test_bad_batches(batch, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fxquant.calibrate(prepared(), [batch], progress=False)


@pytest.mark.parametrize("data", [[3, 4], 5, None, [None], "ab"], ids=repr)
def test_bad_data(data) -> None:
    with pytest.raises(CalibrationError):
        fxquant.calibrate(prepared(), data, progress=False)


@pytest.mark.parametrize("data", [[], iter(()), torch.zeros(0, 3, 9, 7), [torch.zeros(0, 3, 9, 7)]],
                         ids=["list", "iterator", "tensor", "batch"])  # fmt: skip
def test_empty_data(data) -> None:
    with pytest.raises(CalibrationError, match="no calibration data"):
        fxquant.calibrate(prepared(), data, progress=False)


def test_quantize_without_examples_needs_data_to_look_at() -> None:
    for data in ([], iter([X])):
        with pytest.raises(CalibrationError, match="example inputs"):
            fxquant.quantize(small(), data, progress=False)


def test_convert_before_calibrate() -> None:
    with pytest.raises(CalibrationError, match=r"not calibrated(.|\n)*fxquant\.calibrate"):
        fxquant.convert(prepared())


def test_calibrate_twice() -> None:
    ready = fxquant.calibrate(prepared(), [X], progress=False)
    with pytest.raises(StageError, match="calibrated already"):
        fxquant.calibrate(ready, [X], progress=False)
    with pytest.raises(StageError, match="calibrated already"):
        ready(X)


def test_a_failed_batch_does_not_spoil_the_calibration() -> None:
    manual = prepared()
    manual(X[:6])
    with pytest.raises(CalibrationError):
        manual(X[:, :, :4])
    manual(X[6:])
    assert same_codes(fxquant.convert(manual), reference_result())


@pytest.mark.parametrize("thing", [None, 3, small()])
def test_stages_are_checked_by_type(thing) -> None:
    with pytest.raises(FxQuantError, match=r"fxquant\.prepare"):
        fxquant.calibrate(thing, [X], progress=False)
    with pytest.raises(FxQuantError, match=r"fxquant\.prepare"):
        fxquant.convert(thing)


@pytest.mark.parametrize(
    "inputs",
    [(), (X, X), (X[0],), (X[:, :2],), (X.to(torch.uint8),), ([1.0],), (None,)],
    ids=["none", "two", "rank", "channels", "uint8", "list", "None"],
)
def test_quantized_checks_its_inputs(inputs) -> None:
    for run in (reference_result(), reference_result().reference):
        with pytest.raises(ConfigError):
            run(*inputs)


def test_two_inputs() -> None:
    entry = BY_NAME["two_in_two_out"]
    a, b = entry.inputs(batch=6)
    quantized = fxquant.quantize(entry.make(), [(a[:3], b[:3]), (a[3:], b[3:], LABELS)],
                                 (a[:1], b[:1]), progress=False)  # fmt: skip
    assert set(quantized.reference(a, b)) == {"map", "scores"}
    with pytest.raises(CalibrationError, match="takes 2 inputs"):
        fxquant.quantize(entry.make(), [a], (a[:1], b[:1]), progress=False)
    ready = fxquant.prepare(entry.make(), (a[:1], b[:1]))
    with pytest.raises(CalibrationError, match="1 inputs were given"):
        ready(a)


# Odd but legal


def test_strides_and_storage_do_not_matter() -> None:
    expected = reference_result().reference(X)
    odd = {
        "channels_last": X.to(memory_format=torch.channels_last),
        "transposed": X.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": torch.stack([X, X], -1)[..., 0],
        "expanded": X[:1].expand(12, -1, -1, -1),
    }
    for name, x in odd.items():
        wanted = expected if name != "expanded" else expected[:1].expand(12, -1)
        assert_same(reference_result().reference(x), wanted, name)
        calibrated([x])
    assert same_codes(calibrated([odd["transposed"]]), calibrated([X]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_taken_as_float32(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    assert same_codes(calibrated([x]), calibrated([x.float()]))
    result = reference_result()
    assert_same(result.reference(x), result.reference(x.float()))
    assert_same(result(x), result(x.float()))


def test_inputs_that_require_grad() -> None:
    calibrated([X.clone().requires_grad_(True)])
    assert not reference_result().reference(X.clone().requires_grad_(True)).requires_grad


def test_the_simulator_computes_the_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts or at once, and not what the float graph computes."""
    quantized = reference_result()
    x = torch.cat([X, 2 * X, X - 1])
    whole = quantized.integer(x)
    monkeypatch.setattr("fxquant.model.samples_at_once", lambda _: 5)
    assert_same(quantized(x), whole)
    assert_same(quantized.reference(x), whole)
    assert not torch.equal(quantized.graph_module(x), whole)


def dead_channels(bias: bool, value: float) -> nn.Module:
    model = small()
    with torch.no_grad():
        for conv in (model[0], model[3]):
            conv.weight[1] = value
            if not bias:
                conv.bias[1] = 0.0
        model[6].weight[2] = value
    return model


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, -1e-30, 1e-12])
def test_dead_channels(bias: bool, value: float, bits: int) -> None:
    """All-zero and subnormal weights, with a bias to carry and without."""
    model = dead_channels(bias, value)
    config = Config(default=OpConfig(bits, 8))
    quantized = fxquant.quantize(model, [X], config=config, progress=False)
    check_per_operator(quantized, [X])
    simulated, integer = quantized.graph_module(X), quantized(X)
    assert float((simulated - integer).abs().max()) < 0.02 * float(simulated.abs().max())


@pytest.mark.parametrize("data", [torch.zeros(4, 3, 9, 7), torch.full((4, 3, 9, 7), 1e-42)],
                         ids=["zeros", "subnormal"])  # fmt: skip
def test_zero_range_inputs(data: Tensor) -> None:
    quantized = fxquant.quantize(small(), [data], progress=False)
    check_per_operator(quantized, [data])
    torch.testing.assert_close(quantized.reference(data), small()(data).detach(),
                               rtol=0.02, atol=0.02)  # fmt: skip


def test_constant_activations() -> None:
    """A value that is always zero (a dead ReLU) and one that is a constant."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            dead = F.relu(self.a(x) - 1e4)
            return self.c(self.b(dead) + F.relu(self.b(dead) * 0 + 3.0))

    torch.manual_seed(0)
    model = Net().eval()
    quantized = fxquant.quantize(model, [X], progress=False)
    check_per_operator(quantized, [X])
    torch.testing.assert_close(quantized.reference(X), model(X).detach(), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_data_does_not_matter(scale: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    quantized = fxquant.quantize(model.eval(), [X * scale], progress=False)
    assert signal_to_noise(model(X * scale).detach(), quantized.reference(X * scale)) > 30
