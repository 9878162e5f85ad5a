"""Quantize a model and write an .fxq file."""

from __future__ import annotations

import argparse
from pathlib import Path

from fxquant.api import calibrate, convert, prepare
from fxquant.cli import models
from fxquant.cli.arguments import add_config, add_data, target
from fxquant.cli.bits import HELP as BITS_HELP
from fxquant.cli.bits import bits_option, with_bits
from fxquant.cli.data import read_data
from fxquant.cli.inspect import counts
from fxquant.cli.output import Result, check_output, show_progress
from fxquant.recipes import RECIPES, recipe

EXAMPLES = """\
  fxquant quantize mynets:resnet --data images/ --size 224 --resize 256 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --output net.fxq
  fxquant quantize net.pt2 --data calibration.npy --config W4A8 --output net.fxq
  fxquant quantize net.onnx --data a.npy b.npy --config W4A8 --recipe uwc --output net.fxq
  fxquant quantize mynets:net --data x.npz --bits 4.5 --bits head=float --output net.fxq
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", help=models.HELP)
    parser.add_argument("--output", type=Path, required=True, metavar="X.fxq", help="file to write")
    add_config(parser)
    parser.add_argument(
        "--recipe", choices=RECIPES, default="default", metavar="NAME",
        help=f"solvers that choose the codes: {', '.join(RECIPES)}",
    )  # fmt: skip
    parser.add_argument("--bits", type=bits_option, action="append", default=[], help=BITS_HELP)
    parser.add_argument("--target", type=target, metavar="NAME", help="the device it is for")
    parser.add_argument("--seed", type=int, default=0, help="of the solvers (default 0)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER",
        help="keep solved units here: the same command goes on after an interruption",
    )  # fmt: skip
    add_data(parser, required=True)


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    check_output(arguments.output, ".fxq")
    source = models.read_model(arguments.model)
    data = read_data(arguments, source.shapes)
    example = source.example(data)
    config = with_bits(arguments.config, arguments.bits, source.model, example)
    prepared = prepare(source.model, example, config, arguments.target)
    calibrate(
        prepared, data, recipe(arguments.recipe), progress=show_progress(), seed=arguments.seed,
        checkpoint=arguments.checkpoint,
    )  # fmt: skip
    quantized = convert(prepared)
    if arguments.target is not None:
        quantized.provenance["target"] = arguments.target.name
    quantized.save(arguments.output)
    size = arguments.output.stat().st_size
    summary = counts(quantized.calibrated)
    data_out = {
        "output": arguments.output, "bytes": size, **summary, "notes": quantized.notes,
        "float_islands": [str(island) for island in quantized.float_islands],
        "provenance": quantized.provenance,
    }  # fmt: skip
    lines = [
        f"wrote {arguments.output} ({size / 2**20:.2f} MiB)",
        f"{summary['integer']} of {summary['operators']} operators run on integers; "
        f"weight bits: {summary['weight_bits']}",
        *(f"float: {island}" for island in quantized.float_islands),
        *(f"note: {name}: {note}" for name, note in quantized.notes.items()),
    ]
    return Result(data_out, "\n".join(lines))
