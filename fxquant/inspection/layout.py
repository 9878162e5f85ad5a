"""Where the boxes of the graph picture go.

Basic-Units follow each other from top to bottom. Inside a unit a node's row is the length of the
longest path to it, and the nodes of a row stand side by side, ordered by the mean column of what
they read. That is the first step of the Sugiyama method and suffices for blocks of CNNs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxquant.ir.units import Unit

BOX_WIDTH, BOX_HEIGHT = 150, 34
GAP_X, GAP_Y = 22, 22
UNIT_PADDING, UNIT_TITLE = 12, 18


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> float:
        """Horizontal center."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes of nodes and units, and the size of the whole."""

    nodes: Mapping[str, Box]
    units: Sequence[tuple[Unit, Box]]
    width: float
    height: float


def rows_of(names: Sequence[str], sources: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Names by longest path inside the group; a row is ordered by the columns of its sources."""
    depth: dict[str, int] = {}
    for name in names:
        inside = [depth[s] for s in sources.get(name, ()) if s in depth]
        depth[name] = 1 + max(inside, default=-1)
    rows: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for name in names:
        rows[depth[name]].append(name)
    column: dict[str, float] = {}
    for row in rows:
        wish = {}
        for i, name in enumerate(row):
            known = [column[s] for s in sources.get(name, ()) if s in column]
            wish[name] = sum(known) / len(known) if known else i
        row.sort(key=wish.__getitem__)
        column |= {name: i - len(row) / 2 for i, name in enumerate(row)}
    return rows


def layout(
    inputs: Sequence[str], units: Sequence[Unit], sources: Mapping[str, Sequence[str]]
) -> Layout:
    """Place inputs and units.

    Args:
        inputs: Names of the network inputs: the first row.
        units: Basic-Units in execution order.
        sources: What each node reads.
    """
    groups = [rows_of(unit.nodes, sources) for unit in units]
    widest = max((len(row) for rows in [[inputs], *groups] for row in rows), default=1)
    lane = 16 * widest_skip([[list(inputs)], *groups], sources)
    width = widest * (BOX_WIDTH + GAP_X) + 2 * UNIT_PADDING + 2 * lane
    boxes: dict[str, Box] = {}
    framed: list[tuple[Unit, Box]] = []
    y = _place(inputs, GAP_Y / 2, width, boxes) + GAP_Y
    for unit, rows in zip(units, groups, strict=True):
        top, y = y, y + UNIT_TITLE + UNIT_PADDING / 2
        for i, row in enumerate(rows):
            y = _place(row, y + (GAP_Y if i else 0), width, boxes)
        y += UNIT_PADDING
        framed.append((unit, Box(2, top, width - 4, y - top)))
        y += GAP_Y
    return Layout(boxes, framed, width, y)


def widest_skip(groups: Sequence[list[list[str]]], sources: Mapping[str, Sequence[str]]) -> int:
    """How many lanes (at most 3) the edges that jump over rows may need beside the boxes."""
    rows = [row for group in groups for row in group]
    place = {name: i for i, row in enumerate(rows) for name in row}
    crossings = [0] * (len(rows) + 1)
    for name, reads in sources.items():
        for source in reads:
            for row in range(place.get(source, 0) + 1, place.get(name, 0)):
                crossings[row] += 1
    return min(max(crossings), 3)


def _place(row: Sequence[str], y: float, width: float, boxes: dict[str, Box]) -> float:
    """Center a row at height `y`; returns its lower edge."""
    x = (width - len(row) * BOX_WIDTH - (len(row) - 1) * GAP_X) / 2
    for i, name in enumerate(row):
        boxes[name] = Box(x + i * (BOX_WIDTH + GAP_X), y, BOX_WIDTH, BOX_HEIGHT)
    return y + BOX_HEIGHT
