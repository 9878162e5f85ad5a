"""Network definitions of torchvision, and of timm if it is installed, with random weights.

torchvision's compiled operators fit one torch release only. The networks do not need them, but
importing the package asks for two operator schemas; defining these lets any torch run it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant.targets import Target

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},
}
_library: list[torch.library.Library] = []  # schemas live as long as the library object


@cache
def torchvision_models() -> ModuleType:
    """The module `torchvision.models`."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        try:
            library.define(schema)
        except RuntimeError:  # a matching torchvision has registered it
            continue
    _library.append(library)
    import torchvision.models

    return torchvision.models


def network(name: str, seed: int = 0, size: int | None = None) -> nn.Module:
    """A network in inference mode, with random weights from `seed`.

    Batch norms get the statistics of random images, so that activations neither vanish nor grow.

    Args:
        name: torchvision's name, or "timm:" and timm's.
        seed: Of weights and images.
        size: Height and width of these; default: as `input_shape`.
    """
    shape = (3, size, size) if size else input_shape(name)[1:]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = _constructed(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # average over what is seen
        model(torch.randn(4, *shape))
    return model.eval()


def _constructed(name: str) -> nn.Module:
    models = torchvision_models()  # timm imports torchvision too
    library, _, plain = name.rpartition(":")
    if not library:
        return getattr(models, name)(weights=None, **_OPTIONS.get(name, {}))
    return import_module(library).create_model(plain, pretrained=False)


def input_shape(name: str) -> tuple[int, int, int, int]:
    """Shape of one image, batch axis included."""
    size = 299 if name == "inception_v3" else 224
    return (1, 3, size, size)


def quantize(
    model: nn.Module,
    images: Tensor,
    batch: int = 1,
    config: fxquant.Config = fxquant.W8A8,
    target: Target | None = None,
) -> fxquant.Quantized:
    """Codes for measuring speed: the nearest ones, quickly; for batches of a size."""
    nearest = fxquant.solvers.RoundToNearest(), fxquant.solvers.BiasCorrection()
    return fxquant.quantize(
        model, [images], images[:batch], config, nearest, target, progress=False
    )
