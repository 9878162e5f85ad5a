"""Where the boxes of the graph picture go.

Basic-Units follow each other from top to bottom, in as many columns as make the picture a little
wider than high. Inside a unit a node's row is the length of the longest path to it, and the nodes
of a row stand side by side, ordered by the mean column of what they read. That is the first step of
the Sugiyama method and suffices for blocks of CNNs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from fxquant.ir.units import Unit

BOX_WIDTH, BOX_HEIGHT = 168, 48
GAP_X, GAP_Y = 22, 18
UNIT_PADDING, UNIT_TITLE = 12, 18
HEADER = UNIT_TITLE + UNIT_PADDING / 2  # from the top of a frame to its first row
GUTTER = 26  # between columns
ASPECT = 1.5  # wanted width to height
MOST_COLUMNS = 6


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
    """Boxes of nodes and units, and the size of the whole.

    Attributes:
        nodes: Box of every node.
        units: The units with their frames.
        columns: Column of every node.
        column_width: Width of a column; columns are `GUTTER` apart.
        width: Of the whole.
        height: Of the whole.
    """

    nodes: Mapping[str, Box]
    units: Sequence[tuple[Unit, Box]]
    columns: Mapping[str, int]
    column_width: float
    width: float
    height: float

    def gutter(self, column: int) -> float:
        """Horizontal middle of the space left of a column."""
        return column * (self.column_width + GUTTER) + GUTTER / 2

    def middle(self, column: int) -> float:
        """Horizontal middle of a column."""
        return (self.gutter(column) + self.gutter(column + 1)) / 2


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
    heights = [_height(rows) for rows in groups]
    total = BOX_HEIGHT + 2 * GAP_Y + sum(heights) + GAP_Y * len(heights)
    count = min(max(round(sqrt(ASPECT * total / width)), 1), MOST_COLUMNS, max(len(units), 1))
    limit = total / count
    boxes: dict[str, Box] = {}
    columns = dict.fromkeys(inputs, 0)
    framed: list[tuple[Unit, Box]] = []
    column, lowest = 0, 0.0
    y = _place(inputs, GAP_Y, GUTTER, width, boxes) + GAP_Y
    for unit, rows, height in zip(units, groups, heights, strict=True):
        if y + height / 2 > limit and column < count - 1:
            column, y = column + 1, float(GAP_Y)
        left = GUTTER + column * (width + GUTTER)
        framed.append((unit, Box(left, y, width, height)))
        row_y = y + HEADER
        for row in rows:
            row_y = _place(row, row_y, left, width, boxes) + GAP_Y
        columns |= dict.fromkeys(unit.nodes, column)
        y += height + GAP_Y
        lowest = max(lowest, y)
    whole = GUTTER + (column + 1) * (width + GUTTER)
    return Layout(boxes, framed, columns, width, whole, max(lowest, y))


def _height(rows: Sequence[Sequence[str]]) -> float:
    """Of a unit's frame."""
    inside = len(rows) * BOX_HEIGHT + max(len(rows) - 1, 0) * GAP_Y
    return HEADER + inside + UNIT_PADDING


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


def _place(row: Sequence[str], y: float, left: float, width: float, boxes: dict[str, Box]) -> float:
    """Center a row at height `y` in a column; returns its lower edge."""
    x = left + (width - len(row) * BOX_WIDTH - (len(row) - 1) * GAP_X) / 2
    for i, name in enumerate(row):
        boxes[name] = Box(x + i * (BOX_WIDTH + GAP_X), y, BOX_WIDTH, BOX_HEIGHT)
    return y + BOX_HEIGHT
