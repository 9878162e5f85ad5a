"""Write an .fxq file in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from fxquant.cli.arguments import add_data
from fxquant.cli.data import read_data
from fxquant.cli.models import read_quantized
from fxquant.cli.output import Result, check_output
from fxquant.ir import meta
from fxquant.onnx import export_onnx

EXAMPLES = """\
  fxquant export net.fxq --onnx net.onnx
  fxquant export net.fxq --onnx net.onnx --data x.npy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help="an .fxq file")
    parser.add_argument(
        "--onnx", type=Path, required=True, metavar="FILE",
        help="ONNX in QDQ form; with --data residual sums are quantized too, which ONNX Runtime's "
        "integer kernels need",
    )  # fmt: skip
    add_data(parser, required=False, samples=32)


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    check_output(arguments.onnx)
    quantized = read_quantized(arguments.network)
    sample = None
    if arguments.data is not None:
        inputs = [n for n in quantized.calibrated.graph.nodes if n.op == "placeholder"]
        sample = next(iter(read_data(arguments, [meta.shape_of(n) for n in inputs])))
        sample = tuple(x[: quantized.batch] for x in sample)
    path = export_onnx(quantized, arguments.onnx, sample)
    size = path.stat().st_size
    text = f"wrote {path} ({size / 2**20:.2f} MiB)"
    return Result({"onnx": path, "bytes": size}, text)
