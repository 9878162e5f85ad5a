"""Compare solvers at low bit widths: a table, and a plot of accuracy against time.

    python -m examples.compare_solvers [--config W3A3] [--recipes rtn-mse gptq uwc]

Every recipe of `fxquant.recipes` starts from the same float network and sees the same calibration
images. Writes build/compare/solvers.png where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fxquant
from examples.digits_quickstart import DigitsNet, accuracy, digits, train
from fxquant.inspection import layer_errors
from fxquant.recipes import RECIPES, recipe

DEFAULT = ("rtn-max", "rtn-mse", "rtn-mse+bias", "bit-split", "gptq", "attention-round", "uwc")


@dataclass(frozen=True)
class Row:
    """What one recipe reached: top-1 in percent, SQNR of the logits in dB, seconds."""

    recipe: str
    top1: float
    sqnr: float
    seconds: float


def measure(name: str, model: DigitsNet, config: fxquant.Config, data: tuple[Tensor, ...]) -> Row:
    train_images, images, labels = data
    start = time.perf_counter()
    quantized = fxquant.quantize(
        model, train_images.split(64), train_images[:1], config, recipe(name), progress=False
    )
    seconds = time.perf_counter() - start
    logits = layer_errors(quantized, images, model)[-1].cumulative
    with torch.no_grad():
        return Row(name, accuracy(quantized(images), labels), logits.sqnr, seconds)


def plot(rows: list[Row], title: str, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row.seconds for row in rows], [row.sqnr for row in rows], "o")
    for row in rows:
        axes.annotate(row.recipe, (row.seconds, row.sqnr), (4, 4), textcoords="offset points")
    axes.set(title=title, xlabel="seconds", ylabel="SQNR of the logits, dB", xscale="log")
    axes.margins(0.2)
    axes.grid(True, alpha=0.3)
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def main(config: str, names: list[str], smoke: bool, output: Path) -> None:
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()
    if smoke:
        images, labels = images[:40], labels[:40]
    model = DigitsNet()
    train(model, train_images, train_labels, epochs=2 if smoke else 15)
    samples = train_images[: 64 if smoke else 512]
    with torch.no_grad():
        print(f"FP32 top-1 {accuracy(model(images), labels):.2f} %, {config}")
    print(f"{'recipe':16s} {'top-1 %':>8s} {'SQNR dB':>8s} {'seconds':>8s}")
    rows = []
    for name in names:
        row = measure(name, model, getattr(fxquant, config), (samples, images, labels))
        print(f"{row.recipe:16s} {row.top1:8.2f} {row.sqnr:8.1f} {row.seconds:8.1f}")
        rows.append(row)
    output.mkdir(parents=True, exist_ok=True)
    plot(rows, f"DigitsNet, {config}", output / "solvers.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare solvers at low bit widths.")
    parser.add_argument("--config", default="W3A3", help="a preset of fxquant")
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(DEFAULT))
    parser.add_argument("--smoke", action="store_true", help="fast recipes, fewer images")
    parser.add_argument("--output", type=Path, default=Path("build/compare"))
    options = parser.parse_args()
    recipes = ["rtn-mse", "gptq"] if options.smoke else options.recipes
    main(options.config, recipes, options.smoke, options.output)
