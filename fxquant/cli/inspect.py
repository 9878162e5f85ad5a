"""Show stages, operators, units, bits, and what stays in float and why."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from typing import Any

from torch.fx import GraphModule, Node

from fxquant.api import prepare
from fxquant.cli import models
from fxquant.cli.arguments import add_config, add_shapes
from fxquant.cli.output import Result, table
from fxquant.errors import ConfigError
from fxquant.inspection.branches import REMEDY, linear_branches
from fxquant.ir import meta
from fxquant.ir.frontend import capture, normalize
from fxquant.ir.stages import Stage
from fxquant.ir.units import units
from fxquant.model import float_islands
from fxquant.passes.fuse import fuse

EXAMPLES = """\
  fxquant inspect net.fxq
  fxquant inspect net.fxq --stage integer
  fxquant inspect mynets:resnet --shape 1,3,224,224 --config W4A8
"""

_HEAD = ("node", "operator", "module", "shape", "weight", "result", "remark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help=f"an .fxq file, or a model: {models.HELP}")
    parser.add_argument(
        "--stage", choices=[s.value for s in Stage], metavar="STAGE",
        help=f"print the graph of a stage: {', '.join(s.value for s in Stage)}",
    )  # fmt: skip
    add_shapes(parser, "a model")
    add_config(parser)


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    stages, graph, notes, provenance = _stages(arguments)
    if arguments.stage is not None:
        if arguments.stage not in stages:
            raise ConfigError(
                f"this network has no stage {arguments.stage}",
                why="stages before calibration exist for models, those after it for .fxq files",
                remedy=f"choose of {', '.join(stages)}",
            )
        text = str(stages[arguments.stage].graph)
        return Result({"stage": arguments.stage, "graph": text}, text)
    rows = [_row(n, notes) for n in graph.graph.nodes if n.op not in ("get_attr", "output")]
    parts = units(graph)
    islands, branches = float_islands(graph), linear_branches(graph)
    summary = counts(graph)
    sizes = {name: sum(n.op.startswith("call_") for n in g.graph.nodes)
             for name, g in stages.items()}  # fmt: skip
    data = {
        **summary, "stages": sizes, "nodes": rows, "provenance": provenance,
        "units": [{"name": u.name, "inputs": u.inputs, "nodes": u.nodes} for u in parts],
        "float_islands": [{"node": i.node, "operator": i.operator, "module": i.module,
                           "reason": i.reason} for i in islands],
        "branches": [asdict(b) for b in branches],
    }  # fmt: skip
    lines = [
        "stages: " + ", ".join(f"{name} ({n} operators)" for name, n in sizes.items()),
        f"{summary['integer']} of {summary['operators']} operators run on integers; "
        f"weight bits: {summary['weight_bits']}; activation bits: {summary['activation_bits']}",
        "",
        table(_HEAD, [[row[k] for k in _HEAD] for row in rows]),
        "",
        f"{len(parts)} units:",
        *(f"  {u.name} <- {', '.join(u.inputs)}: {', '.join(u.nodes)}" for u in parts),
        "",
        *([f"{len(islands)} operators stay in float:"] if islands else ["nothing stays in float"]),
        *(f"  {island}" for island in islands),
        *([f"sums that could be one convolution ({len(branches)}), {REMEDY}:"] if branches else []),
        *(f"  {found}" for found in branches),
    ]
    return Result(data, "\n".join(lines))


def _stages(
    arguments: argparse.Namespace,
) -> tuple[dict[str, GraphModule], GraphModule, dict[str, str], dict[str, Any]]:
    """Graphs by stage, the one to describe, and what the file says of it."""
    if arguments.network.endswith(".fxq"):
        quantized = models.read_quantized(arguments.network)
        stages = {
            Stage.CALIBRATED.value: quantized.calibrated,
            Stage.QDQ.value: quantized.graph_module,
            Stage.INTEGER.value: quantized.integer,
        }
        return stages, quantized.calibrated, quantized.notes, quantized.provenance
    source = models.read_model(arguments.network)
    example = source.zeros(arguments.shape)
    traced = normalize(capture(source.model, example), example)
    annotated = prepare(source.model, example, arguments.config).graph
    stages = {
        Stage.FLOAT.value: traced,
        Stage.FUSED.value: fuse(normalize(capture(source.model, example), example)),
        Stage.ANNOTATED.value: annotated,
    }
    return stages, annotated, {}, {}


def counts(graph: GraphModule) -> dict[str, Any]:
    """How many operators there are, how many run on integers, and how wide they are."""
    operators = [n for n in graph.graph.nodes if n.op.startswith("call_")]
    values = [n for n in graph.graph.nodes if n.op != "get_attr"]
    return {
        "operators": len(operators),
        "integer": len(operators) - len(float_islands(graph)),
        "weight_bits": _listed([_weight_bits(n) for n in operators]),
        "activation_bits": _listed([_bits(n) for n in values]),
    }


def _listed(widths: list[int | None]) -> str:
    """`4 (12), 8 (2)`: widths and how often each occurs."""
    counted = Counter(b for b in widths if b is not None)
    return ", ".join(f"{bits} ({n})" for bits, n in sorted(counted.items())) or "none"


def _row(node: Node, notes: dict[str, str]) -> dict[str, Any]:
    reason, weight, bits = meta.float_reason(node), _weight_bits(node), _bits(node)
    operator = getattr(node.target, "__name__", str(node.target))
    return {
        "node": node.name,
        "operator": "input" if node.op == "placeholder" else operator,
        "module": meta.provenance(node).name,
        "shape": "x".join(map(str, node.meta.get("shape", ()))),
        "weight": "" if weight is None else f"{weight} bits",
        "result": "float" if bits is None else f"{bits} bits",
        "remark": f"float: {reason}" if reason else notes.get(node.name, ""),
    }


def _weight_bits(node: Node) -> int | None:
    if not meta.is_layer(node):
        return None
    weight = node.args[1]
    assert isinstance(weight, Node)
    value = meta.quant(weight)
    return None if value is None else value.spec.dtype.bits


def _bits(node: Node) -> int | None:
    value = meta.quant(node)
    return None if value is None or meta.delivers_float(node) else value.spec.dtype.bits
