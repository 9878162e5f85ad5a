"""Mixed precision: a bit width for every layer under a budget, against one width for all.

    python -m examples.mixed_precision [--average 3.5] [--measured]

`allocate_bits` judges layers by the coding length of their weights, which needs no data, or with
`--measured` by the noise each width makes at the network's output. Writes build/mixed/pareto.png
(predicted loss against average bits) where matplotlib is installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import fxquant
from examples.digits_quickstart import DigitsNet, accuracy, digits, train
from fxquant.errors import ConfigError
from fxquant.recipes import CodingLength, Sensitivity, allocate_bits, pareto_front
from fxquant.solvers import GPTQ, BiasCorrection


def top1(model: DigitsNet, config: fxquant.Config, samples: Tensor, test: tuple) -> float:
    """Of the integer network."""
    solver = (GPTQ(), BiasCorrection())
    quantized = fxquant.quantize(
        model, samples.split(64), samples[:1], config, solver, progress=False
    )
    images, labels = test
    return accuracy(quantized(images), labels)


def main(average: float, measured: bool, smoke: bool, output: Path) -> None:
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()
    if smoke:
        images, labels = images[:40], labels[:40]
    model = DigitsNet()
    train(model, train_images, train_labels, epochs=1 if smoke else 15)
    samples = train_images[: 64 if smoke else 512]
    method = Sensitivity(samples=32) if measured else CodingLength()
    choice = {"method": method, "data": samples, "progress": False}

    allocation = allocate_bits(model, samples[:1], average, **choice)
    print(allocation)
    uniform = fxquant.preset(round(average), 8)
    for name, config in (("mixed", allocation.config), (f"all {round(average)} bit", uniform)):
        print(f"{name}: top-1 {top1(model, config, samples, (images, labels)):.2f} %")

    averages = (3, 4, 8) if smoke else (2.5, 3, 3.5, 4, 5, 6, 8)
    front = pareto_front(model, samples[:1], averages, **choice)
    print(front)
    output.mkdir(parents=True, exist_ok=True)
    try:
        print(f"plot: {front.plot(output / 'pareto.png')}")
    except ConfigError as error:  # matplotlib is optional
        print(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Choose a bit width for every layer.")
    parser.add_argument("--average", type=float, default=3.5, help="bits a weight")
    parser.add_argument("--measured", action="store_true", help="measure sensitivities on data")
    parser.add_argument("--smoke", action="store_true", help="less training, fewer images")
    parser.add_argument("--output", type=Path, default=Path("build/mixed"))
    options = parser.parse_args()
    main(options.average, options.measured, options.smoke, options.output)
