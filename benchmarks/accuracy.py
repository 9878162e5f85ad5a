"""Accuracy of quantized networks on real checkpoints: `python benchmarks/accuracy.py [nets]`.

Needs a directory with `model_defs.py`, weights and image tars (argument `--assets`, default
`$FXQUANT_ASSETS` or ../shared/assets). Calibrates on the training images, evaluates the compiled
integer network on the test images, and prints a Markdown table: top-1, drop against FP32,
agreement with FP32, logit SQNR, calibration time, and whether compiled == reference on a sample.
Finished cells are kept in a JSON file; the table is rebuilt from it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import os
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

import fxquant
import tvm_backend

NETS = (
    "mobilenet_v2_1.0_224",
    "mobilenet_v1_0.75_224",
    "squeezenet1_1",
    "googlenet_bvlc",
    "cifar10_resnet20",
    "cifar10_resnet56",
)
SETS = {
    "imagenet": ("imagenet_train", "imagenet_like_test"),
    "cifar10": ("cifar10_jpeg_train", "cifar10_jpeg_test"),
}
CONFIGS = {"W8A8": fxquant.W8A8}
BATCH = 32


@dataclass(frozen=True)
class Assets:
    """The directory of checkpoints and images."""

    root: Path
    definitions: ModuleType

    @classmethod
    def open(cls, root: Path) -> Assets:
        """Load `model_defs.py` from the directory."""
        path = root / "model_defs.py"
        if not path.is_file():
            sys.exit(f"{path} not found: pass --assets or set FXQUANT_ASSETS")
        spec = importlib.util.spec_from_file_location("model_defs", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return cls(root, module)

    def images(self, name: str, train: bool, limit: int | None) -> tuple[Tensor, Tensor]:
        """Preprocessed images `[N, 3, H, W]` and labels `[N]` for a net."""
        archive = SETS[self.definitions.ZOO[name][2]][0 if train else 1]
        with tarfile.open(self.root / "images" / f"{archive}.tar") as tar:

            def read(member: str) -> bytes:
                file = tar.extractfile(member)
                assert file is not None
                return file.read()

            rows = list(csv.DictReader(io.StringIO(read("labels.csv").decode())))[:limit]
            pixels = np.stack(
                [np.asarray(Image.open(io.BytesIO(read(r["file"]))).convert("RGB")) for r in rows]
            )
        labels = torch.tensor([int(r["label"]) for r in rows])
        return self.definitions.preprocess(pixels, name), labels


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise ratio over all logits."""
    noise = ((reference - other) ** 2).sum()
    return float(10 * torch.log10((reference**2).sum() / noise))


@torch.no_grad()
def measure(assets: Assets, name: str, config: str, arguments: argparse.Namespace) -> dict:
    """One cell of the table."""
    model = assets.definitions.load(name, str(assets.root))
    train, _ = assets.images(name, True, arguments.calibration)
    test, labels = assets.images(name, False, arguments.images)
    expected = torch.cat([model(x) for x in test.split(BATCH)])
    start = time.perf_counter()
    quantized = fxquant.quantize(
        model, list(train.split(BATCH)), train[:1], CONFIGS[config], progress=False
    )
    seconds = time.perf_counter() - start
    compiled = tvm_backend.compile(quantized)
    rows = [compiled(x) for x in tqdm(test.split(1), f"{name} {config}", leave=False)]
    logits = torch.cat(rows)
    sample = test[: arguments.check]
    reference = quantized.reference(sample)
    simulated = quantized(sample)
    top1 = float((logits.argmax(1) == labels).float().mean() * 100)
    fp32 = float((expected.argmax(1) == labels).float().mean() * 100)
    return {
        "fp32": fp32,
        "top1": top1,
        "drop": fp32 - top1,
        "agreement": float((logits.argmax(1) == expected.argmax(1)).float().mean() * 100),
        "sqnr": sqnr_db(expected, logits),
        "seconds": seconds,
        "exact": bool(torch.equal(reference, logits[: len(sample)])),
        "simulator_agreement": float(
            (simulated.argmax(1) == logits[: len(sample)].argmax(1)).float().mean() * 100
        ),
        "images": len(test),
        "calibration": len(train),
    }


def table(cells: dict[str, dict]) -> str:
    """The cells as a Markdown table."""
    lines = [
        "| net | config | FP32 | top-1 | drop | agreement % | SQNR dB | calibration s | "
        "compiled == reference | Q/DQ agrees % | images |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, c in cells.items():
        name, config = key.split(":")
        lines.append(
            f"| {name} | {config} | {c['fp32']:.2f} | {c['top1']:.2f} | {c['drop']:+.2f} | "
            f"{c['agreement']:.1f} | {c['sqnr']:.1f} | {c['seconds']:.0f} | "
            f"{'yes' if c['exact'] else 'NO'} | {c['simulator_agreement']:.1f} | {c['images']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=NETS, metavar="net", help="default: all")
    default = os.environ.get("FXQUANT_ASSETS", "../shared/assets")
    parser.add_argument("--assets", type=Path, default=Path(default))
    parser.add_argument("--configs", nargs="+", default=["W8A8"], choices=CONFIGS)
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--images", type=int, default=None, help="test images, default all")
    parser.add_argument("--check", type=int, default=32, help="images compared bit for bit")
    parser.add_argument("--results", type=Path, default=Path("build/accuracy.json"))
    parser.add_argument("--again", action="store_true", help="measure finished cells again")
    arguments = parser.parse_args()
    assets = Assets.open(arguments.assets)
    results = arguments.results
    cells = json.loads(results.read_text()) if results.is_file() else {}
    for name in arguments.nets:
        for config in arguments.configs:
            key = f"{name}:{config}"
            if key in cells and not arguments.again:
                continue
            cells[key] = measure(assets, name, config, arguments)
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(cells, indent=1))
            print(table({key: cells[key]}).splitlines()[-1], flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
