"""Train a small CNN, quantize it to 8 bits, compile it, and check it: `make demo`.

Writes build/digits/: digits.fxq (the quantized network), report.html, and compiled/ (a shared
library for this machine with its manifest).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fxquant
import tvm_backend
from fxquant.inspection import interleaved, report


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project, add."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DigitsNet(nn.Module):
    """Stem, two residual blocks, pooling, classifier for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(16), nn.MaxPool2d(2), Block(16))
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images `[N, 1, 8, 8]` and labels `[N]`."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(classes)
    train, test = train_test_split(range(len(labels)), test_size=0.3, random_state=0)
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """A few seconds of training."""
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        scheduler.step()
    model.eval()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * float((logits.argmax(1) == labels).float().mean())


def kib(*paths: Path) -> str:
    """Size of files."""
    return f"{sum(path.stat().st_size for path in paths) / 1024:.1f} KiB"


def main(smoke: bool, output: Path) -> None:
    torch.manual_seed(0)
    output.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, images, labels = digits()
    if smoke:
        images, labels = images[:40], labels[:40]
    model = DigitsNet()
    train(model, train_images, train_labels, epochs=2 if smoke else 15)

    prepared = fxquant.prepare(model, train_images[:1], config=fxquant.W8A8)
    fxquant.calibrate(prepared, train_images.split(64), progress=False)
    quantized = fxquant.convert(prepared)
    compiled = tvm_backend.compile(quantized, threads=1)

    with torch.no_grad():
        simulated = quantized(images)
        results = {
            "FP32 torch": model(images),
            "quantized, simulated": simulated,
            f"compiled for {compiled.target}": compiled(images),
        }
    expected = results["FP32 torch"].argmax(1)
    print(f"{'network':32s}  top-1 %  agrees with FP32 %")
    for name, logits in results.items():
        agreement = accuracy(logits, expected)
        print(f"{name:32s}  {accuracy(logits, labels):7.2f}  {agreement:18.2f}")
    equal = torch.equal(list(results.values())[-1], simulated)
    print(f"\ncompiled == simulated: {equal} (bit for bit on {len(images)} images)")

    quantized.save(output / "digits.fxq")
    torch.save(model.state_dict(), output / "digits_fp32.pt")
    report(quantized, output / "report.html", images[:32], compiled, model)
    folder = compiled.export(output / "compiled")
    print(f"FP32 weights {kib(output / 'digits_fp32.pt')}, digits.fxq "
          f"{kib(output / 'digits.fxq')}, library {kib(*folder.glob('*.so'))}")  # fmt: skip
    torch.set_num_threads(1)
    with torch.inference_mode():
        timings = interleaved(
            {"compiled": lambda: compiled(images[:1]), "torch": lambda: model(images[:1])},
            rounds=5 if smoke else 100,
        )
    print(f"one image, one thread: FP32 torch {timings['torch'].median:.3f} ms, "
          f"compiled {timings['compiled'].median:.3f} ms")  # fmt: skip
    print(f"see {output}/report.html")
    if not equal:
        raise SystemExit("the compiled network differs from the simulated one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Quantize and compile a digit classifier.")
    parser.add_argument("--smoke", action="store_true", help="less training, fewer images")
    parser.add_argument("--output", type=Path, default=Path("build/digits"))
    options = parser.parse_args()
    main(options.smoke, options.output)
