"""Search faster kernel schedules for this machine, by measuring."""

from __future__ import annotations

import argparse
from pathlib import Path

from fxquant.cli.arguments import TARGETS, add_time_limit, positive, target
from fxquant.cli.backend import backend, target_of
from fxquant.cli.models import read_quantized
from fxquant.cli.output import Result, check_output, show_progress

EXAMPLES = """\
  fxquant tune net.fxq --output net.tuned --minutes 10
  fxquant compile net.fxq --tuned net.tuned --output build/net
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help="an .fxq file")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE",
        help="the file of schedules; if it exists, the search goes on where it stopped",
    )  # fmt: skip
    parser.add_argument(
        "--target", type=target, metavar="NAME",
        help=f"one that this machine can run, of {', '.join(TARGETS)} (default: what the network "
        "was quantized for, else this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--trials", type=positive, default=32, metavar="N",
        help="schedules to measure for each distinct layer (default 32)",
    )  # fmt: skip
    add_time_limit(parser, "search")
    parser.add_argument(
        "--threads", type=positive, metavar="N",
        help="threads of the kernels (default: one a physical core)",
    )  # fmt: skip


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    check_output(arguments.output)
    quantized = read_quantized(arguments.network)
    device = target_of(quantized, arguments.target)
    tuned = backend().tune(
        quantized, arguments.output, device, trials=arguments.trials,
        time_limit=arguments.time_limit, threads=arguments.threads, progress=show_progress(),
    )  # fmt: skip
    layers = [
        {"nodes": x.nodes, "default": x.default, "best": x.best, "ratio": x.ratio,
         "default_us": x.microseconds, "tried": x.tried}
        for x in tuned.layers
    ]  # fmt: skip
    data = {
        "output": arguments.output, "target": device.name, "ratio": tuned.ratio, "layers": layers,
        "undecided": tuned.undecided,
    }  # fmt: skip
    return Result(data, f"{tuned}\nwrote {arguments.output} for {device.name}")
