"""The report: one self-contained HTML file, no scripts and nothing loaded from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from fxquant.inspection.branches import REMEDY
from fxquant.inspection.charts import error_chart, histogram_chart, kib, memory_chart
from fxquant.inspection.inspection import Inspection
from fxquant.inspection.picture import graph_picture, style_sheet
from fxquant.inspection.svg import BAD, GOOD, hue

WEAKEST = 10
SLOWEST = 10


def render(inspection: Inspection) -> str:
    """The HTML text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": kib, "db": _decibel, "times": _times}
    environment.globals |= {"hue": hue, "histogram": histogram_chart, "bad": BAD, "good": GOOD}
    template = files("fxquant.inspection").joinpath("report.html.jinja").read_text("utf-8")
    layers = inspection.layers
    measured = {x.fact.node: x.measured for x in layers if x.measured is not None}
    facts = [layer.fact for layer in layers]
    return environment.from_string(template).render(
        inspection=inspection,
        summary=_summary(inspection),
        style_sheet=style_sheet(),
        picture=graph_picture(facts, inspection.units, measured),
        errors=error_chart(list(measured.values())) if measured else "",
        memory=memory_chart(inspection.memory) if inspection.memory else "",
        weakest=inspection.weakest[:WEAKEST],
        remedy=REMEDY,
        slowest=sorted(layers, key=lambda x: -x.milliseconds)[:SLOWEST],
        milliseconds=sum(x.milliseconds for x in layers),
    )


def _summary(inspection: Inspection) -> dict[str, Any]:
    facts = [layer.fact for layer in inspection.layers]
    weights = [f.weight for f in facts if f.weight is not None]
    operators = [f for f in facts if f.operator != "input"]
    return {
        "operators": len(operators),
        "integer": len(operators) - len(inspection.islands),
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


def _decibel(sqnr: float) -> str:
    return "exact" if sqnr == float("inf") else f"{sqnr:.1f}"


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
