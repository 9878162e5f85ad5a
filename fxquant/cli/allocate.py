"""Choose a bit width for every layer under a budget, and show what other budgets give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fxquant.cli import models
from fxquant.cli.arguments import (
    add_config,
    add_data,
    add_shapes,
    add_time_limit,
    numbers,
    widths,
)
from fxquant.cli.data import read_data
from fxquant.cli.output import Result, check_output, show_progress
from fxquant.errors import ConfigError
from fxquant.recipes import Allocation, CodingLength, Sensitivity, pareto_front
from fxquant.recipes.allocation import Method
from fxquant.recipes.bits import CANDIDATES
from fxquant.recipes.result import figure_for

EXAMPLES = """\
  fxquant allocate mynets:resnet --shape 1,3,224,224 --averages 3,4,5,6 --plot front.png
  fxquant allocate mynets:resnet --data x.npy --averages 4 --measured --minutes 5 --keep s.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", help=models.HELP)
    parser.add_argument(
        "--averages", type=numbers, default="3,4,5,6", metavar="B[,B]",
        help="average bits of the weights whose width is chosen (default 3,4,5,6)",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", type=widths, default=CANDIDATES, metavar="B[,B]",
        help=f"widths to choose from (default {','.join(map(str, CANDIDATES))})",
    )  # fmt: skip
    parser.add_argument(
        "--budget", choices=("size", "bit_operations"), default="size",
        help="what the average limits (default size)",
    )  # fmt: skip
    parser.add_argument(
        "--measured", action="store_true",
        help="judge layers by the noise they make on --data, and choose by an integer program; "
        "default: by the coding length of their weights, which needs no data",
    )  # fmt: skip
    add_time_limit(parser, "measure")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE",
        help="keep measurements in this JSON file: the same command goes on where it stopped",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw loss against bits")
    add_shapes(parser, "a model without --data")
    add_config(parser)
    add_data(parser, required=False, samples=32)


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    for path in (arguments.plot, arguments.keep):
        if path is not None:
            check_output(path)
    if arguments.plot is not None:
        figure_for(arguments.plot)  # before hours of measuring
    method = _method(arguments)
    source = models.read_model(arguments.model)
    data = None if arguments.data is None else read_data(arguments, source.shapes)
    example = source.zeros(arguments.shape) if data is None else source.example(data)
    front = pareto_front(
        source.model, example, arguments.averages, method=method, data=data,
        config=arguments.config, candidates=arguments.candidates, budget=arguments.budget,
        progress=show_progress(),
    )  # fmt: skip
    lines = []
    for allocation in front:
        lines += [str(allocation), f"quantize with: {' '.join(options(allocation))}", ""]
    if len(arguments.averages) > 1:
        lines.append(str(front))
    result: dict[str, Any] = {"allocations": [_described(a) for a in front]}
    if arguments.plot is not None:
        result["plot"] = front.plot(arguments.plot)
        lines.append(f"wrote {arguments.plot}")
    return Result(result, "\n".join(lines).rstrip())


def options(allocation: Allocation) -> list[str]:
    """The options of `fxquant quantize` that give every layer its width."""
    base = allocation.base.default
    assert base is not None  # otherwise no layer would have been free
    return [
        f"--config W{base.weight_bits}A{base.activation_bits}",
        *(
            f"--bits {name}={layer.bits}/{activations}"
            for layer in allocation.layers
            if not layer.fixed
            for name, activations in layer.rules
        ),
    ]


def _method(arguments: argparse.Namespace) -> Method:
    """What judges the layers.

    Raises:
        ConfigError: Options that go with --measured stand without it, or it has no data.
    """
    if not arguments.measured:
        if arguments.time_limit is not None or arguments.keep is not None:
            raise ConfigError("--minutes and --keep are for --measured", remedy="add --measured")
        return CodingLength()
    if arguments.data is None:
        raise ConfigError("--measured measures on data", remedy="pass --data")
    limit, file = arguments.time_limit, arguments.keep
    return Sensitivity(samples=arguments.samples, time_limit=limit, file=file)


def _described(allocation: Allocation) -> dict[str, Any]:
    return {
        "average_chosen_bits": allocation.average_chosen_bits,
        "average_bits": allocation.average_bits,
        "bytes": allocation.size / 8,
        "bit_operations": allocation.bit_operations,
        "loss": allocation.loss,
        "method": allocation.method,
        "note": allocation.note,
        "bits": allocation.bits,
        "options": options(allocation),
    }
