"""Latency of this project against FP32 torch, ONNX Runtime int8 and OpenVINO int8.

    python -m benchmarks.latency --nets resnet18 mobilenet_v2 --threads 1 2 --rounds 15 --batch 1

The int8 engines get the same weight codes and grids, as an ONNX QDQ model. Each cell (network,
threads, batch) is a process of its own, in which the engines take turns; see
fxquant/inspection/timing.py. Times are of a whole batch.
Ratios above 1 mean that this project is faster. `ours:x86_avx2` and the like are kernels for
another target that this machine can run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cell import ENGINES, OURS_FOR, OURS_INT7, environment
from tvm_backend.devices import cpu_name

NETS = ("resnet18", "resnet50", "mobilenet_v2", "squeezenet1_1", "googlenet")
PACKAGES = ("torch", "apache-tvm", "onnxruntime", "openvino")


def run_cell(net: str, threads: int, rounds: int, batch: int, engines: list[str]) -> dict[str, Any]:
    """Measure one cell in a fresh process."""
    numbers = map(str, (threads, rounds, batch))
    command = [sys.executable, "-m", "benchmarks.cell", net, *numbers, *engines]
    done = subprocess.run(
        command, env=environment(threads), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(cell: dict[str, Any], engines: list[str]) -> str:
    """One line of the table: median of the first engine, then ratio and median of the others."""
    timings = cell["timings"]
    base = timings[engines[0]]
    rate = 1000 * cell["batch"] / base["median"]
    parts = [
        f"{cell['net']:20s} {cell['threads']:2d} {cell['batch']:3d}"
        f" {rate:7.1f}/s {base['median']:9.2f} ms"
    ]
    for name in engines[1:]:
        timing = timings[name]
        spread = (timing["high"] - timing["low"]) / timing["median"]
        parts.append(f"{timing['ratio']:6.2f}x {timing['median']:9.2f} ms ±{spread / 2:4.0%}")
    return "  ".join(parts)


def header(engines: list[str]) -> str:
    """Title line of the table."""
    parts = [f"{'network':20s} th  bt  images/s {engines[0]:>12s}"]
    return "  ".join(parts + [f"{name:>25s}" for name in engines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare inference latencies.")
    parser.add_argument("--nets", nargs="+", default=list(NETS), help="torchvision networks")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images at once")
    parser.add_argument(
        "--engines", nargs="+", choices=(*ENGINES, OURS_INT7, *OURS_FOR), default=list(ENGINES),
        help="the first is the base of the ratios",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("build/latency.json"))
    options = parser.parse_args()
    print(header(options.engines), flush=True)
    cells = []
    for net in options.nets:
        for threads, batch in product(options.threads, options.batch):
            cells.append(run_cell(net, threads, options.rounds, batch, options.engines))
            print(row(cells[-1], options.engines), flush=True)
    versions = {name: version(name) for name in PACKAGES}
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    result = {"cpu": cpu_name(), "time": stamp, "versions": versions, "cells": cells}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
