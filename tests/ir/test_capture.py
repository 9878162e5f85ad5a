"""What cannot be captured says where and why; the caller's model stays as it was."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

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


def test_a_refused_model_does_not_fill_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.export prints the graph it has so far."""

    class DependsOnValues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            print("said by the model", file=sys.stderr)
            return x + 1 if bool((x * 2).sum() > 3) else x

    with pytest.raises(CaptureError, match=r"torch\.export: GuardOnDataDependent"):
        normalized(DependsOnValues(), X)
    text = capfd.readouterr().err
    assert "said by the model" in text and "def forward" not in text and "aten" not in text


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


def _small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def _with_hook(register: str, hook: Callable[..., Any]) -> nn.Module:
    model = _small()
    getattr(model[0], register)(hook)
    return model


def _with(attribute: str, value: Any) -> nn.Module:
    model = _small()
    setattr(model, attribute, value)
    return model


UNFAITHFUL = {
    "hook": (lambda: _with_hook("register_forward_hook", lambda m, x, y: y * 3), "hooks"),
    "pre_hook": (lambda: _with_hook("register_forward_pre_hook", lambda m, x: x), "hooks"),
    "script": (lambda: torch.jit.script(_small()), "TorchScript"),
    "scripted_child": (lambda: nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3))), "TorchScript"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "lazy module"),
    "lock": (lambda: _with("lock", threading.Lock()), "cannot be copied"),
    "replaced": (lambda: _with("forward", lambda x: x * 2), "was replaced"),
    "compiled": (lambda: torch.compile(_small()), "was replaced"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", UNFAITHFUL)
def test_what_a_copy_would_lose_is_refused(name: str) -> None:
    make, message = UNFAITHFUL[name]
    with pytest.raises(CaptureError, match=message) as error:
        fxquant.prepare(make(), X)
    assert error.value.where and error.value.remedy


REPARAMETRIZED = {
    "prune": lambda m: prune.random_structured(
        prune.l1_unstructured(m, "weight", 0.5), "weight", 0.3, dim=0
    ),
    "weight_norm_hook": nn.utils.weight_norm,
    "spectral_norm_hook": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_computed_weights_are_plain_tensors_of_the_graph(name: str) -> None:
    model = _small()
    REPARAMETRIZED[name](model[0])
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # as a checkpoint is loaded: weights are computed anew
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gm = normalized(model, X)
    assert ops_of(gm) == ["conv2d", "clamp"]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    check_same_floats(gm, model.eval(), [X])


def test_a_module_with_a_forward_of_its_own_is_traced_through() -> None:
    model = _small()
    model[1].forward = lambda x: x * 2
    gm = normalized(model, X)
    assert ops_of(gm) == ["conv2d", "affine"]
    check_same_floats(gm, model, [X])
