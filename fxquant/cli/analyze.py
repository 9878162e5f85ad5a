"""Measure errors layer by layer, and which layers are sensitive to fewer bits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fxquant.cli import models
from fxquant.cli.arguments import add_config, add_data, widths
from fxquant.cli.data import Batches, read_data
from fxquant.cli.output import Result, check_output, show_progress, table
from fxquant.errors import ConfigError
from fxquant.inspection import inspect
from fxquant.ir import meta
from fxquant.model import Quantized
from fxquant.recipes import Sensitivity
from fxquant.recipes.network import describe

EXAMPLES = """\
  fxquant analyze net.fxq --data x.npy
  fxquant analyze net.fxq --data images/ --model mynets:resnet --html report.html
  fxquant analyze net.fxq --data x.npy --model mynets:resnet --sensitivity 2,4,8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help="an .fxq file")
    parser.add_argument(
        "--model", help=f"the float model; without it errors of weights do not show: {models.HELP}"
    )
    parser.add_argument(
        "--sensitivity", type=widths, metavar="BITS,BITS",
        help="also measure every layer alone at these weight widths; needs --model",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the HTML report")
    add_config(parser)
    add_data(parser, required=True, samples=32)


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    if arguments.sensitivity and arguments.model is None:
        raise ConfigError("--sensitivity needs the float model", remedy="pass --model")
    if arguments.html is not None:
        check_output(arguments.html)
    quantized = models.read_quantized(arguments.network)
    inputs = [n for n in quantized.calibrated.graph.nodes if n.op == "placeholder"]
    data = read_data(arguments, [meta.shape_of(n) for n in inputs])
    source = None if arguments.model is None else models.read_model(arguments.model)
    model = None if source is None else source.model
    found = inspect(quantized, data, model=model, samples=arguments.samples)
    errors = [layer.measured for layer in found.layers if layer.measured is not None]
    rows = [
        {"node": e.node, "isolated_sqnr": e.isolated.sqnr, "cumulative_sqnr": e.cumulative.sqnr,
         "isolated_cosine": e.isolated.cosine, "cumulative_cosine": e.cumulative.cosine}
        for e in errors
    ]  # fmt: skip
    head = ("node", "isolated dB", "cumulative dB", "cosine")
    lines = [
        table(head, [(e.node, _decibel(e.isolated.sqnr), _decibel(e.cumulative.sqnr),
                      f"{e.cumulative.cosine:.6f}") for e in errors])
    ]  # fmt: skip
    if source is None:
        lines.append("errors of the activations only; pass --model to include those of the weights")
    result: dict[str, Any] = {"layers": rows}
    if arguments.sensitivity and source is not None:
        result["sensitivity"] = _sensitivity(arguments, quantized, source, data)
        lines += ["", _sensitivity_table(result["sensitivity"], arguments.sensitivity)]
    if arguments.html is not None:
        result["html"] = found.write(arguments.html)
        lines.append(f"wrote {arguments.html}")
    return Result(result, "\n".join(lines))


def _sensitivity(
    arguments: argparse.Namespace, quantized: Quantized, source: models.Source, data: Batches
) -> list[dict[str, Any]]:
    """Relative noise each layer alone makes at each width, most sensitive first."""
    inputs = [n for n in quantized.calibrated.graph.nodes if n.op == "placeholder"]
    example = tuple(x[: meta.shape_of(n)[0]] for x, n in zip(next(iter(data)), inputs, strict=True))
    network = describe(source.model, example, arguments.config)
    method = Sensitivity(samples=arguments.samples)
    found = method.predict(network, arguments.sensitivity, data, show_progress())
    rows = [
        {"layer": weight.name, "weights": weight.size, "macs": weight.macs,
         "noise": dict(zip(arguments.sensitivity, map(float, losses), strict=True))}
        for weight, losses in zip(network.free, found.losses, strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -max(row["noise"].values()))


def _sensitivity_table(rows: list[dict[str, Any]], bits: tuple[int, ...]) -> str:
    head = ("layer", "weights", *(f"noise at {b} bits" for b in bits))
    return table(
        head,
        [(r["layer"], r["weights"], *(f"{r['noise'][b]:.2e}" for b in bits)) for r in rows],
    )


def _decibel(sqnr: float) -> str:
    return "exact" if sqnr == float("inf") else f"{sqnr:.1f}"
