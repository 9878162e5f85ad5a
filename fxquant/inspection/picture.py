"""Pictures as SVG text: the graph by Basic-Units, and weight histograms.

SVG elements are made by `_tag`, which escapes every attribute and text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from fxquant.inspection.errors import LayerError
from fxquant.inspection.facts import NodeFacts
from fxquant.inspection.layout import Box, Layout, layout
from fxquant.ir.units import Unit

GOOD, BAD = 40.0, 10.0  # dB: green from here up, red from here down


def _tag(name: str, content: Markup | str = "", **attributes: object) -> Markup:
    written = Markup(" ").join(
        Markup('{}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
    )
    return Markup("<{0} {1}>{2}</{0}>").format(Markup(name), written, content)


def color(sqnr: float) -> str:
    """Traffic-light color of a signal-to-noise ratio."""
    share = min(max((sqnr - BAD) / (GOOD - BAD), 0.0), 1.0)
    return f"hsl({120 * share:.0f} 65% 82%)"


def sparkline(counts: Sequence[int], width: int = 96, height: int = 22) -> Markup:
    """A histogram as small bars."""
    top, step = max(counts, default=0) or 1, width / max(len(counts), 1)
    bars = Markup("").join(
        _tag("rect", x=f"{i * step:.2f}", y=f"{height * (1 - c / top):.2f}",
             width=f"{max(step - 0.5, 0.5):.2f}", height=f"{height * c / top:.2f}")
        for i, c in enumerate(counts)
        if c
    )  # fmt: skip
    return _tag("svg", bars, class_="spark", width=width, height=height, role="img",
                viewBox=f"0 0 {width} {height}")  # fmt: skip


def graph_picture(
    facts: Sequence[NodeFacts], units: Sequence[Unit], errors: Mapping[str, LayerError]
) -> Markup:
    """The network from top to bottom, one frame a Basic-Unit; a box links to its table row."""
    sources = {f.node: f.sources for f in facts}
    inputs = [f.node for f in facts if f.operator == "input"]
    places = layout(inputs, units, sources)
    parts = [_frame(unit, box) for unit, box in places.units]
    parts += [
        _edge(places, source, f.node)
        for f in facts
        for source in f.sources
        if source in places.nodes and f.node in places.nodes
    ]
    parts += [
        _box(f, places.nodes[f.node], errors.get(f.node)) for f in facts if f.node in places.nodes
    ]
    return _tag("svg", Markup("").join(parts), class_="graph", role="img",
                width=f"{places.width:.0f}", height=f"{places.height:.0f}",
                viewBox=f"0 0 {places.width:.0f} {places.height:.0f}")  # fmt: skip


def _frame(unit: Unit, box: Box) -> Markup:
    frame = _tag("rect", x=box.x, y=box.y, width=box.width, height=box.height, rx=8, class_="unit")
    return frame + _tag("text", escape(unit.name), x=box.x + 8, y=box.y + 14, class_="unit-name")


def _box(fact: NodeFacts, box: Box, error: LayerError | None) -> Markup:
    kind = "float" if fact.float_reason else "integer"
    style = f"fill: {color(error.cumulative.sqnr)}" if error and kind == "integer" else ""
    rect = _tag("rect", x=box.x, y=box.y, width=box.width, height=box.height, rx=5,
                class_=f"node {kind}", style=style)  # fmt: skip
    bits = f" w{fact.weight.bits}" if fact.weight else ""
    head = _tag("text", escape(_short(fact.operator + bits, 24)), x=box.center, y=box.y + 14,
                class_="op")  # fmt: skip
    shape = "×".join(map(str, fact.shape[1:]))
    tail = _tag("text", escape(_short(shape, 26)), x=box.center, y=box.y + 27, class_="shape")
    quality = f", {error.cumulative.sqnr:.1f} dB" if error else ""
    grid = " ".join(fact.grid)
    title = _tag("title", escape(f"{fact.node} ({fact.module}): {grid}{quality}"))
    return _tag("a", rect + head + tail + title, href=f"#{fact.node}")


def _edge(places: Layout, source: str, node: str) -> Markup:
    """A line to the next row, or a detour beside the boxes where rows are jumped over."""
    a, b = places.nodes[source], places.nodes[node]
    ax, ay, bx, by = a.center, a.bottom, b.center, b.y
    between = [box for box in places.nodes.values() if ay < box.y < by]
    low, high = min(ax, bx), max(ax, bx)
    if not any(box.x < high and box.x + box.width > low for box in between):
        middle = (ay + by) / 2
        path = f"M{ax} {ay}C{ax} {middle} {bx} {middle} {bx} {by}"
    else:
        apart = 12 + int(ay) % 3 * 8  # neighbouring detours take different lanes
        if ax < min(bx, places.width / 2):
            lane = min(low, *(box.x for box in between)) - apart
        else:
            lane = max(high, *(box.x + box.width for box in between)) + apart
        path = (
            f"M{ax} {ay}C{ax} {ay + 14} {lane} {ay + 4} {lane} {ay + 24}"
            f"V{by - 24}C{lane} {by - 4} {bx} {by - 14} {bx} {by}"
        )
    return _tag("path", d=path, class_="edge")


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
