"""The report: one self-contained HTML file, no scripts and nothing loaded from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from torch import nn

from fxquant.inspection.errors import LayerError, layer_errors
from fxquant.inspection.facts import NodeFacts, node_facts
from fxquant.inspection.picture import color, graph_picture, sparkline
from fxquant.inspection.timing import Timing, interleaved
from fxquant.ir import meta
from fxquant.ir.units import units
from fxquant.model import Quantized

WEAKEST = 5

logger = logging.getLogger("fxquant")


def report(
    quantized: Quantized,
    path: str | Path,
    data: Any = None,
    compiled: Callable[..., Any] | None = None,
    model: Any = None,
) -> Path:
    """Write the HTML report.

    Args:
        quantized: From `fxquant.convert`.
        path: The file to write; missing folders are made.
        data: Inputs to measure per-layer errors on, as in `fxquant.calibrate`; None leaves the
            errors out.
        compiled: The compiled network (any callable on the inputs), to be timed.
        model: The float model: per-layer errors then include those of the weights, and its
            latency is measured next to the compiled network's.

    Returns:
        The path written.
    """
    errors = {} if data is None else {e.node: e for e in layer_errors(quantized, data, model)}
    timings = {} if compiled is None else _timings(quantized, compiled, model)
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(render(quantized, errors, timings, model is not None), encoding="utf-8")
    logger.info("wrote report %s", destination)
    return destination


def render(
    quantized: Quantized,
    errors: Mapping[str, LayerError],
    timings: Mapping[str, Timing],
    weights_count: bool,
) -> str:
    """The HTML text.

    Args:
        quantized: The network.
        errors: Per-layer errors by node name, may be empty.
        timings: Latencies by name, may be empty.
        weights_count: Whether the errors include those of the weights.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"mib": _mib, "db": _decibel, "times": _times}
    environment.globals |= {"color": color, "sparkline": sparkline}
    template = files("fxquant.inspection").joinpath("report.html.jinja").read_text("utf-8")
    facts = node_facts(quantized)
    parts = units(quantized.calibrated)
    return environment.from_string(template).render(
        facts=facts,
        summary=_summary(facts, quantized),
        islands=quantized.float_islands,
        provenance=quantized.provenance,
        picture=graph_picture(facts, parts, errors),
        units=parts,
        errors=errors,
        weakest=_weakest(errors),
        weights_count=weights_count,
        timings=timings,
    )


def _summary(facts: tuple[NodeFacts, ...], quantized: Quantized) -> dict[str, Any]:
    weights = [f.weight for f in facts if f.weight is not None]
    operators = [f for f in facts if f.operator != "input"]
    return {
        "operators": len(operators),
        "integer": len(operators) - len(quantized.float_islands),
        "layers": len(weights),
        "weight_bits": _widths([w.bits for w in weights]),
        "activation_bits": _widths([f.bits for f in facts if f.bits is not None]),
        "float_bytes": sum(w.float_bytes for w in weights),
        "integer_bytes": sum(w.integer_bytes for w in weights),
    }


def _widths(bits: list[int]) -> str:
    """`8` or `4 (12), 8 (2)`: the widths with how often each occurs."""
    counts = {b: bits.count(b) for b in sorted(set(bits))}
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{b} ({n})" for b, n in counts.items()) or "none"


def _weakest(errors: Mapping[str, LayerError]) -> list[LayerError]:
    return sorted(errors.values(), key=lambda e: e.isolated.sqnr)[:WEAKEST]


@torch.no_grad()
def _timings(quantized: Quantized, compiled: Callable[..., Any], model: Any) -> dict[str, Timing]:
    """The compiled network, and next to it the float model if there is one."""
    nodes = [n for n in quantized.calibrated.graph.nodes if n.op == "placeholder"]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(meta.shape_of(n), generator=generator) for n in nodes]
    candidates: dict[str, Callable[[], object]] = {"compiled": lambda: compiled(*inputs)}
    if isinstance(model, nn.Module):
        candidates["float32 torch"] = lambda: model(*inputs)
    return interleaved(candidates)


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 1 << 20 else f"{size / 2**10:.1f} KiB"


def _decibel(sqnr: float) -> str:
    return "exact" if sqnr == float("inf") else f"{sqnr:.1f}"


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
