"""What cannot be captured says where and why; the caller's model stays as it was."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.errors import CaptureError, ConfigError
from tests.graphs import check_same_floats, normalized, ops_of
from tests.zoo import ZOO, ZooModel

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class ReadsItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item()


class ReadsList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + float(x[0, 0, 0, 0])


@pytest.mark.parametrize("model", [DependsOnValues(), ReadsItem(), ReadsList()],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_use_of_tensor_values_is_refused_by_file_and_line(model: nn.Module) -> None:
    with pytest.raises(CaptureError) as error:
        normalized(model, X)
    assert re.search(r"test_capture\.py:\d+", error.value.where), str(error.value)
    assert error.value.why and error.value.remedy


def test_branch_on_shapes_is_fine() -> None:
    class DependsOnShape(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, (0, 1)) if x.shape[-1] % 2 == 0 else x

    model = DependsOnShape()
    check_same_floats(normalized(model, X), model, [X])


def test_export_is_the_second_try_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Loops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x
            for row in range(len(x.shape) + x.shape[0]):  # range() of a traced size: fx cannot
                total = total + row
            return total

    model = Loops()
    with caplog.at_level(logging.WARNING, "fxquant"):
        gm = normalized(model, X)
    check_same_floats(gm, model, [X])
    assert "torch.export" in caplog.text and "test_capture.py" in caplog.text


@pytest.mark.parametrize("thing", [None, 3, "resnet18", torch.nn.functional.relu, {"a": 1}])
def test_what_is_no_model_is_refused(thing) -> None:
    with pytest.raises(CaptureError, match="cannot capture a"):
        normalized(thing, X)


def test_wrong_number_of_inputs() -> None:
    model = nn.Conv2d(3, 4, 1)
    with pytest.raises(CaptureError, match="2 example inputs were given"):
        fxquant.prepare(nn.Sequential(model), (X, X))


def test_wrong_shape_of_example_inputs() -> None:
    with pytest.raises(CaptureError, match="fails on the example inputs"):
        fxquant.prepare(nn.Sequential(nn.Conv2d(5, 4, 1)), X)


@pytest.mark.parametrize(
    "inputs",
    [
        (),
        [],
        ("x",),
        (X, 3),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8),
        {"x": X},
        None,
        5,
    ],
    ids=repr,
)
def test_bad_example_inputs(inputs) -> None:
    with pytest.raises(ConfigError):
        fxquant.prepare(nn.Sequential(nn.Conv2d(3, 4, 1)), inputs)


def test_leaf_of_a_foreign_trace_is_traced_through() -> None:
    """Where a GraphModule hides operations in a leaf, capture looks inside."""

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class LeafTracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Hidden())
    gm = normalized(torch.fx.GraphModule(model, LeafTracer().trace(model)), X)
    assert ops_of(gm) == ["conv2d", "affine"]
    check_same_floats(gm, model, [X])


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_callers_model_is_untouched(entry: ZooModel) -> None:
    training = len(entry.name) % 2 == 0  # half of the models in each mode
    model = entry.make().train(training)
    names = list(dict(model.named_modules()))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    requires = {k: p.requires_grad for k, p in model.named_parameters()}
    versions = {k: p._version for k, p in model.named_parameters()}
    fxquant.prepare(model, entry.inputs())
    assert model.training is training
    assert list(dict(model.named_modules())) == names
    assert {k: p.requires_grad for k, p in model.named_parameters()} == requires
    assert {k: p._version for k, p in model.named_parameters()} == versions
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not any(hasattr(p, "_fxquant") for p in module.parameters())


def test_training_mode_is_captured_as_inference() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    gm = normalized(model, X)
    check_same_floats(gm, model.eval(), [X])
