"""Measure the latency of a compiled network on this machine."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from fxquant.cli.arguments import positive
from fxquant.cli.backend import HELP, backend, compiled
from fxquant.cli.output import Result, table

EXAMPLES = """\
  fxquant bench net.fxq
  fxquant bench build/net --threads 1 2 4 --rounds 200 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help=HELP)
    parser.add_argument(
        "--threads", nargs="+", type=positive, metavar="N",
        help="numbers of threads to measure (default: one a physical core)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=50, help="calls measured (default 50)")
    parser.add_argument("--warmup", type=positive, default=5, help="calls before (default 5)")


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    network = compiled(arguments.network, None)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s.shape, generator=generator) for s in network.signature.inputs]
    rows = []
    for threads in arguments.threads or [network.threads]:
        network.threads = backend().threads.check_threads(threads)
        times = _times(network, inputs, arguments.rounds, arguments.warmup)
        low, median, high = np.percentile(times, [25, 50, 75])
        rows.append(
            {"threads": threads, "median_ms": float(median), "min_ms": float(times.min()),
             "quartiles_ms": [float(low), float(high)], "rounds": arguments.rounds}
        )  # fmt: skip
    shapes = {s.name: list(s.shape) for s in network.signature.inputs}
    data = {"target": network.target.name, "inputs": shapes, "latency": rows}
    head = ("threads", "median ms", "min ms", "quartiles ms")
    lines = [
        f"{network.target.name}, inputs {shapes}",
        table(head, [(r["threads"], f"{r['median_ms']:.3f}", f"{r['min_ms']:.3f}",
                      "{:.3f}..{:.3f}".format(*r["quartiles_ms"])) for r in rows]),
    ]  # fmt: skip
    return Result(data, "\n".join(lines))


def _times(network: Any, inputs: list[torch.Tensor], rounds: int, warmup: int) -> np.ndarray:
    """Milliseconds of every measured call."""
    times = np.empty(rounds)
    for i in range(-warmup, rounds):
        start = time.perf_counter()
        network(*inputs)
        if i >= 0:
            times[i] = (time.perf_counter() - start) * 1e3
    return times
