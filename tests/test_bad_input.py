"""Arguments of the wrong kind: one of our errors, before anything is computed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import solvers
from fxquant.errors import (
    CalibrationError,
    CaptureError,
    ConfigError,
    FxQuantError,
    UnsupportedError,
)
from tests.tolerance import assert_same

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Unread:
    """Data that must not be read."""

    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("the data was read")


class Sum(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return torch.relu(self.a(x) + self.b(y)) * scale


class Logarithm(nn.Module):
    """NaN inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.log(-torch.relu(self.a(x)) - 1))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def quantized(model: nn.Module, data: Any, *rest: Any, **options: Any) -> fxquant.Quantized:
    return fxquant.quantize(model.eval(), data, *rest, progress=False, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "gptq"},
        {"solver": solvers.GPTQ},
        {"solver": (None, solvers.GPTQ())},
        {"seed": "a"},
        {"seed": 1.5},
        {"memory": "4G"},
    ],
    ids=str,
)
def test_options_are_checked_before_the_data_is_read(options: dict) -> None:
    with pytest.raises(ConfigError, match="is no "):
        quantized(small(), Unread(), X[:1], **options)
    with pytest.raises(ConfigError, match="is no "):
        fxquant.calibrate(fxquant.prepare(small(), X[:1]), Unread(), progress=False, **options)


@pytest.mark.parametrize("seed", [2**70, -1])
def test_every_whole_number_is_a_seed(seed: int) -> None:
    assert quantized(small(), [X], seed=seed).provenance["samples"] == len(X)


@pytest.mark.parametrize("config", ["W4A8", fxquant.OpConfig(4, 8), None], ids=str)
def test_what_is_no_configuration(config: Any) -> None:
    for function in (fxquant.prepare, fxquant.recipes.allocate_bits):
        with pytest.raises(ConfigError, match=r"where: config\n(.|\n)*W4A8"):
            function(small(), X[:1], config=config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_other_precisions(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match=r"0\.weight has dtype(.|\n)*model\.float\(\)"):
        quantized(small().to(dtype), [X])


@pytest.mark.parametrize(
    "data", [[{"x": X}], [torch.tensor(1.0)], torch.tensor(1.0), [("a", X)], [], 5, None], ids=str
)
def test_data_without_example_inputs(data: Any) -> None:
    with pytest.raises(CalibrationError):
        quantized(small(), data)


def test_example_inputs_are_as_many_as_the_model_needs() -> None:
    assert quantized(Sum(), [(X, X, torch.zeros(6))])(X, X).shape == (6, 4, 8, 8)
    with pytest.raises(CalibrationError, match="takes 2 inputs"):
        quantized(Sum(), [X])


@pytest.mark.parametrize("batch", [(X, X[:4]), (X[:4], X)], ids=["fewer", "more"])
def test_batches_of_different_sizes(batch: tuple[Tensor, Tensor]) -> None:
    ready = fxquant.prepare(Sum().eval(), (X[:1], X[:1]))
    with pytest.raises(CalibrationError, match="batches of"):
        ready(*batch)
    with pytest.raises(ConfigError, match="batches of"):
        quantized(Sum(), [(X, X)])(*batch)


def test_the_message_of_a_bad_value_is_ours_alone() -> None:
    with pytest.raises(FxQuantError, match="NaN") as caught:
        quantized(Logarithm(), [X])
    assert "executing" not in str(caught.value)


def test_quantize_takes_a_checkpoint(tmp_path: Path) -> None:
    quantized(small(), [X], solver=solvers.GPTQ(), checkpoint=tmp_path / "units")
    assert list((tmp_path / "units").iterdir())


def test_pickle_is_refused_and_copies_work() -> None:
    network = quantized(small(), [X])
    with pytest.raises(UnsupportedError, match=r'save\("net\.fxq"\)'):
        pickle.dumps(network)
    shallow, deep = copy.copy(network), copy.deepcopy(network)
    assert shallow.calibrated is network.calibrated is not deep.calibrated
    assert_same(deep(X), network(X))


def test_within_inference_mode() -> None:
    """Learned solvers need gradients, whatever the caller's mode, the model and the data."""
    learned = solvers.UWC(training=solvers.Training(iterations=2))
    options = {"config": fxquant.W4A4, "solver": (solvers.RoundToNearest(), learned)}
    expected = quantized(small(), [X], **options)
    with torch.inference_mode():
        result = quantized(small(), [X.clone()], **options)
        ready = fxquant.prepare(small(), X[:1], fxquant.W4A4)
        ready(X.clone())
    assert_same(result(X), expected(X))
    assert not fxquant.convert(ready).integer(X).is_inference()
