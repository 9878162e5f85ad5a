"""Whole networks: compiled == reference, bit for bit; random weights, settled batch norms."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import fxquant
from benchmarks import models
from benchmarks.assets import NETS, Assets

tvm_backend = pytest.importorskip("tvm_backend")

CONVOLUTIONAL = (
    ("resnet18", 96),
    ("resnet50", 64),
    ("mobilenet_v2", 96),
    ("mobilenet_v3_large", 96),
    ("efficientnet_b0", 96),
    ("shufflenet_v2_x1_0", 96),
    ("squeezenet1_1", 96),
    ("googlenet", 96),
    ("densenet121", 64),
    ("regnet_y_400mf", 96),
    ("vgg11_bn", 64),
    ("mnasnet1_0", 96),
)
NEAREST = fxquant.solvers.RoundToNearest()  # any codes do; quick ones for large layers
WITH_ISLANDS = (
    ("convnext_tiny", {}, "layer_norm"),
    ("vit_b_16", {"image_size": 64}, "scaled_dot_product"),
)


@pytest.fixture(scope="module")
def torchvision_models() -> ModuleType:
    """The module, also beside a torch of another build."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return models.torchvision_models()


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms statistics of real activations, so that values neither die nor explode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def check_exact(model: nn.Module, calibration: Tensor) -> fxquant.Quantized:
    """compiled == reference on calibration data and on data outside the calibrated range."""
    batches = list(calibration.split(2))
    quantized = fxquant.quantize(model, batches, calibration[:1], solver=NEAREST, progress=False)
    compiled = tvm_backend.compile(quantized)
    for x in (calibration[:1], calibration[1:2] * 3 + 1):
        expected, result = quantized.reference(x), compiled(x)
        assert torch.equal(result, expected), float((result - expected).abs().max())
    return quantized


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), CONVOLUTIONAL)
def test_torchvision_network_is_exact(torchvision_models: ModuleType, name: str, size: int) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(torchvision_models, name)(weights=None, **extra)
    x = torch.randn(8, 3, size, size)
    quantized = check_exact(settled(model, x), x)
    assert not quantized.float_islands
    with torch.no_grad():
        expected, simulated = model(x[:4]), quantized(x[:4])
    noise = ((expected - simulated) ** 2).sum() / (expected**2).sum()
    assert (
        float(noise) < 0.5
    )  # random deep networks amplify rounding; a wrong graph gives 1 or more


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "island"), WITH_ISLANDS)
def test_network_with_float_islands_goes_through(
    torchvision_models: ModuleType, name: str, arguments: dict[str, int], island: str
) -> None:
    """Float islands are compiled by another compiler than torch: equal up to float rounding.

    A float that rounds differently before a quantize moves a code by one, which spreads.
    """
    torch.manual_seed(0)
    model = getattr(torchvision_models, name)(weights=None, **arguments).eval()
    for parameter in model.parameters():
        if not bool(parameter.any()):  # vit's head starts at zero
            nn.init.normal_(parameter, std=0.02)
    x = torch.randn(2, 3, 64, 64)
    quantized = fxquant.quantize(model, [x], x[:1], solver=NEAREST, progress=False)
    assert any(island in i.operator for i in quantized.float_islands)
    assert all(i.reason for i in quantized.float_islands)
    compiled = tvm_backend.compile(quantized)
    expected, result = quantized.reference(x[:1]), compiled(x[:1])
    noise = ((result - expected) ** 2).sum() / (expected**2).sum()
    assert float(noise) < 0.01  # 20 dB


def _assets() -> Path:
    root = Path(os.environ.get("FXQUANT_ASSETS", "../shared/assets"))
    if not (root / "model_defs.py").is_file():
        pytest.skip(f"no checkpoints in {root} (set FXQUANT_ASSETS)")
    return root


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("name", NETS)
def test_checkpoint_is_exact(name: str) -> None:
    assets = Assets.open(_assets())
    torch.manual_seed(0)
    size = 32 if name.startswith("cifar") else 224
    check_exact(assets.model(name), torch.randn(2, 3, size, size))
