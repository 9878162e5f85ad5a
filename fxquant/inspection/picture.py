"""The graph as an SVG picture: one frame a Basic-Unit, boxes with widths, shapes and grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from markupsafe import Markup

from fxquant.inspection.facts import NodeFacts
from fxquant.inspection.layout import HEADER, Box, Layout, layout
from fxquant.inspection.measure import Measurement
from fxquant.inspection.svg import hue, shortened, tag
from fxquant.ir.units import Unit

_CHARACTERS = 25  # of the small print that fit into a box


def style_sheet() -> Markup:
    """The colors of all pictures, for light and dark screens."""
    return Markup(files("fxquant.inspection").joinpath("picture.css").read_text("utf-8"))


def graph_picture(
    facts: Sequence[NodeFacts],
    units: Sequence[Unit],
    measured: Mapping[str, Measurement],
    standalone: bool = False,
) -> Markup:
    """The network from top to bottom; a box links to its table row.

    Args:
        facts: Inputs and operators in execution order.
        units: The Basic-Units.
        measured: Measurements by node name, may be empty; they color the boxes.
        standalone: Whether it is to be a file of its own: with style sheet and name space, without
            links.
    """
    sources = {f.node: f.sources for f in facts}
    inputs = [f.node for f in facts if f.operator == "input"]
    places = layout(inputs, units, sources)
    drawn = [f for f in facts if f.node in places.nodes]
    parts = [_frame(unit, box) for unit, box in places.units]
    edges = [(s, f.node) for f in drawn for s in f.sources if s in places.nodes]
    parts += [_edge(places, *edge) for edge in edges]
    boxes = [(f, _box(f, places.nodes[f.node], measured.get(f.node))) for f in drawn]
    parts += [box if standalone else tag("a", box, href=f"#{f.node}") for f, box in boxes]
    if standalone:
        parts.insert(0, tag("style", style_sheet()))
    return tag("svg", Markup("").join(parts), class_="graph", role="img",
               xmlns="http://www.w3.org/2000/svg" if standalone else "",
               width=f"{places.width:.0f}", height=f"{places.height:.0f}",
               viewBox=f"0 0 {places.width:.0f} {places.height:.0f}")  # fmt: skip


def _frame(unit: Unit, box: Box) -> Markup:
    frame = tag("rect", x=box.x, y=box.y, width=box.width, height=box.height, rx=8, class_="unit")
    name = shortened(unit.name, int(box.width / 6.6))
    return frame + tag("text", name, x=box.x + 8, y=box.y + 14, class_="unit-name")


def _box(fact: NodeFacts, box: Box, measured: Measurement | None) -> Markup:
    kind = "float" if fact.float_reason else "integer"
    rated = measured is not None and not fact.float_reason
    rect = tag("rect", x=box.x, y=box.y, width=box.width, height=box.height, rx=5,
               class_=f"node {kind}{' rated' if rated else ''}",
               style=hue(measured.cumulative.sqnr) if measured and rated else "")  # fmt: skip
    bits = f" w{fact.weight.bits}" if fact.weight else ""
    lines = (
        ("op", shortened(fact.operator + bits, 22)),
        ("shape", shortened("×".join(map(str, fact.shape[1:])), _CHARACTERS)),
        ("shape", shortened(grid_text(fact), _CHARACTERS)),
    )
    text = Markup("").join(
        tag("text", line, x=box.center, y=box.y + 15 + 13 * i, class_=style)
        for i, (style, line) in enumerate(lines)
    )
    quality = f", cumulative {measured.cumulative.sqnr:.1f} dB" if measured else ""
    reason = f"; float: {fact.float_reason}" if fact.float_reason else ""
    title = tag("title", f"{fact.node} ({fact.module}): {' '.join(fact.grid)}{quality}{reason}")
    return rect + text + title


def grid_text(fact: NodeFacts) -> str:
    """The grid in a few characters: type, scale, zero point."""
    if fact.scale is None:
        return fact.grid[0]
    return f"{fact.grid[0]} s={fact.scale:.3g} z={fact.zero_point}"


def _edge(places: Layout, source: str, node: str) -> Markup:
    """A line to the next row, a detour beside the boxes, or a way to another column."""
    a, b = places.nodes[source], places.nodes[node]
    start, end = places.columns[source], places.columns[node]
    if start != end:
        return tag("path", d=_across(places, a, b, start, end), class_="edge")
    ax, ay, bx, by = a.center, a.bottom, b.center, b.y
    same = [box for name, box in places.nodes.items() if places.columns[name] == start]
    between = [box for box in same if ay < box.y < by]
    low, high = min(ax, bx), max(ax, bx)
    if not any(box.x < high and box.x + box.width > low for box in between):
        middle = (ay + by) / 2
        path = f"M{ax} {ay}C{ax} {middle} {bx} {middle} {bx} {by}"
    else:
        apart = 12 + int(ay) % 3 * 8  # neighbouring detours take different lanes
        if ax < min(bx, places.middle(start)):
            lane = min(low, *(box.x for box in between)) - apart
        else:
            lane = max(high, *(box.x + box.width for box in between)) + apart
        path = (
            f"M{ax} {ay}C{ax} {ay + 14} {lane} {ay + 4} {lane} {ay + 24}"
            f"V{by - 24}C{lane} {by - 4} {bx} {by - 14} {bx} {by}"
        )
    return tag("path", d=path, class_="edge")


def _across(places: Layout, a: Box, b: Box, start: int, end: int) -> str:
    """Below the source to the space right of its column, over the top, down to the reader."""
    leave, enter = places.gutter(start + 1), places.gutter(end)
    over = f"V4H{enter}" if leave != enter else ""
    tops = [frame.y for _, frame in places.units if frame.y + HEADER == b.y]
    above = min(tops, default=b.y) - 8  # a frame's first row is entered above its title
    return f"M{a.center} {a.bottom}v7H{leave}{over}V{above}H{b.center}V{b.y}"
