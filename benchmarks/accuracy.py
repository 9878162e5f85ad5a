"""Accuracy of quantized networks on real checkpoints: `python -m benchmarks.accuracy`.

Needs a directory with `model_defs.py`, weights and image tars (argument `--assets`, default
`$FXQUANT_ASSETS` or ../shared/assets). Calibrates on the training images, evaluates the compiled
integer network on the test images: top-1, drop against FP32, agreement with FP32, logit SQNR,
calibration time, and whether compiled == reference on a sample.

A cell is a network, a configuration, a recipe (see recipes.py) and a seed. Finished
cells are kept in a JSON file and not measured again; `--tables` rebuilds the tables from it, and
`--document docs/results.md` puts them there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

import fxquant
import tvm_backend
from benchmarks.assets import NETS, Assets
from benchmarks.configurations import CONFIGURATIONS, configuration
from benchmarks.document import rewrite
from benchmarks.recipes import RECIPES
from benchmarks.tables import tables

BATCH = 32
RESULTS = Path(__file__).parent / "results" / "accuracy.json"


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise ratio over all logits."""
    noise = ((reference - other) ** 2).sum()
    return float(10 * torch.log10((reference**2).sum() / noise))


@torch.no_grad()
def measure(
    assets: Assets, name: str, config: str, recipe: str, seed: int, arguments: argparse.Namespace
) -> dict:
    """One cell."""
    model = assets.model(name)
    train, _ = assets.images(name, True, arguments.calibration)
    test, labels = assets.images(name, False, arguments.images)
    expected = torch.cat([model(x) for x in test.split(BATCH)])
    start, busy = time.perf_counter(), time.process_time()
    chosen = configuration(config, model, train)
    quantized = fxquant.quantize(
        model, list(train.split(BATCH)), train[:1], chosen, solver=RECIPES[recipe](),
        progress=arguments.progress, seed=seed,
    )  # fmt: skip
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    compiled = tvm_backend.compile(quantized)
    label = f"{name} {config} {recipe}"
    rows = [compiled(x) for x in tqdm(test.split(1), label, leave=False, disable=None)]
    logits = torch.cat(rows)
    sample = test[: arguments.check]
    reference, floating = quantized(sample), quantized.graph_module(sample)
    top1 = float((logits.argmax(1) == labels).float().mean() * 100)
    fp32 = float((expected.argmax(1) == labels).float().mean() * 100)
    same = floating.argmax(1) == logits[: len(sample)].argmax(1)
    return {
        "fp32": fp32,
        "top1": top1,
        "drop": fp32 - top1,
        "agreement": float((logits.argmax(1) == expected.argmax(1)).float().mean() * 100),
        "sqnr": sqnr_db(expected, logits),
        "seconds": seconds,
        "cpu_seconds": busy,
        "exact": bool(torch.equal(reference, logits[: len(sample)])),
        "qdq_agreement": float(same.float().mean() * 100),
        "images": len(test),
        "calibration": len(train),
        "threads": torch.get_num_threads(),
        "solver": quantized.provenance["solver"],
        "first_bits": first_bits(chosen),
        "residual_bits": chosen.residual_bits,
    }


def first_bits(config: fxquant.Config) -> int:
    """Bits of the first layer's result."""
    layer = config.first_last or config.default
    assert layer is not None
    return layer.activation_bits


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", default=NETS, metavar="net", help="default: all")
    default = os.environ.get("FXQUANT_ASSETS", "../shared/assets")
    parser.add_argument("--assets", type=Path, default=Path(default))
    parser.add_argument("--configs", nargs="+", default=["W8A8"], choices=CONFIGURATIONS)
    parser.add_argument("--recipes", nargs="+", default=["default"], choices=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--images", type=int, default=None, help="test images, default all")
    parser.add_argument("--check", type=int, default=32, help="images compared bit for bit")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure finished cells again")
    parser.add_argument("--progress", action="store_true", help="show the solvers' progress")
    parser.add_argument("--tables", action="store_true", help="only print the tables")
    parser.add_argument("--document", type=Path, help="Markdown file whose tables are replaced")
    arguments = parser.parse_args()
    results = arguments.results
    if not arguments.tables:
        assets = Assets.open(arguments.assets)
        cells = itertools.product(
            arguments.nets, arguments.configs, arguments.recipes, arguments.seeds
        )
        for name, config, recipe, seed in cells:
            key = f"{name}:{config}:{recipe}:{seed}"
            if key in read(results) and not arguments.again:
                continue
            cell = measure(assets, name, config, recipe, seed, arguments)
            write(results, {**read(results), key: cell})
            print(
                f"{key}: drop {cell['drop']:+.2f}, agreement {cell['agreement']:.1f} %, "
                f"SQNR {cell['sqnr']:.1f} dB, {cell['cpu_seconds']:.0f} s",
                flush=True,
            )
    measured = tables(read(results))
    print("\n\n".join(f"**{name}**\n\n{text}" for name, text in measured.items()))
    if arguments.document is not None:
        rewrite(arguments.document, measured)


def read(path: Path) -> dict[str, dict]:
    """The finished cells."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, cells: dict[str, dict]) -> None:
    """Keep the cells, sorted by key; the file is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted(cells.items())), indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
