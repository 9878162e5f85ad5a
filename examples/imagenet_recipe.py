r"""Quantize a pretrained ImageNet (or CIFAR-10) network with a recipe of your choice.

    FXQUANT_ASSETS=path/to/assets python -m examples.imagenet_recipe \
        --net mobilenet_v1_0.75_224 --config W4A8 --recipe uwc --images 256

The assets are a folder of checkpoints and images, see `benchmarks/assets.py`. Compares the float
network and the integer reference on the test images, and writes build/imagenet/<net>.fxq and .html.
`--smoke` takes a tiny network and random images instead.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor, nn

import fxquant
from benchmarks.assets import NETS, Assets
from examples.digits_quickstart import DigitsNet, accuracy, kib
from fxquant.recipes import RECIPES, recipe

Data = tuple[Tensor, Tensor, Tensor]  # calibration images, test images, test labels


def pretrained(name: str, images: int) -> tuple[nn.Module, Data]:
    """A checkpoint with its images."""
    assets = Assets.open(Path(os.environ.get("FXQUANT_ASSETS", "../shared/assets")))
    calibration, _ = assets.images(name, train=True, limit=images)
    test, labels = assets.images(name, train=False, limit=None)
    return assets.model(name), (calibration, test, labels)


def synthetic() -> tuple[nn.Module, Data]:
    """A tiny network and random images."""
    x = torch.randn(48, 1, 8, 8)
    return DigitsNet().eval(), (x[:32], x[32:], torch.arange(16) % 10)


@torch.no_grad()
def logits(network: nn.Module | fxquant.Quantized, images: Tensor) -> Tensor:
    """In batches; of the integer reference if quantized."""
    run = network.reference if isinstance(network, fxquant.Quantized) else network
    return torch.cat([run(batch) for batch in images.split(32)])


def main(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    name = "synthetic" if options.smoke else options.net
    model, data = synthetic() if options.smoke else pretrained(options.net, options.images)
    calibration, test, labels = data
    quantized = fxquant.quantize(
        model,
        calibration.split(32),
        calibration[:1],
        config=getattr(fxquant, options.config),
        solver=recipe(options.recipe),
        progress=not options.smoke,
    )
    exact, integer = logits(model, test), logits(quantized, test)
    print(f"{name}, {options.config}, recipe {options.recipe}: {len(test)} test images")
    for what, value in (
        ("top-1 float", accuracy(exact, labels)),
        ("top-1 integer", accuracy(integer, labels)),
        ("agreement", accuracy(integer, exact.argmax(1))),
    ):
        print(f"{what:14s} {value:6.2f} %")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{name}.fxq"
    quantized.save(file)
    page = quantized.report(file.with_suffix(".html"), test[:16], model=model)
    print(f"{file} {kib(file)}; see {page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Quantize a pretrained network.")
    parser.add_argument("--net", choices=NETS, default="mobilenet_v1_0.75_224")
    parser.add_argument("--config", default="W8A8", help="a preset of fxquant")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="default")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, random images")
    parser.add_argument("--output", type=Path, default=Path("build/imagenet"))
    main(parser.parse_args())
