"""Layout of the graph picture and interleaved timing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fxquant.inspection.layout import layout, rows_of
from fxquant.inspection.timing import interleaved
from fxquant.ir.units import Unit, units
from tests.inspection.nets import quantized_net


def test_rows_are_longest_paths() -> None:
    sources = {"b": ["a"], "c": ["b"], "d": ["a", "c"]}
    assert rows_of(["a", "b", "c", "d"], sources) == [["a"], ["b"], ["c"], ["d"]]


def test_a_row_follows_the_order_of_its_sources() -> None:
    sources = {"q": ["right"], "p": ["left"]}
    assert rows_of(["left", "right", "q", "p"], sources) == [["left", "right"], ["p", "q"]]


def test_boxes_do_not_overlap_and_units_contain_theirs() -> None:
    quantized = quantized_net()
    parts = units(quantized.calibrated)
    nodes = [n for n in quantized.calibrated.graph.nodes if n.op != "output"]
    sources = {n.name: [s.name for s in n.all_input_nodes] for n in nodes}
    places = layout(["x"], parts, sources)
    boxes = list(places.nodes.values())
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a.x >= b.x + b.width or b.x >= a.x + a.width
            assert apart or a.y >= b.bottom or b.y >= a.bottom
        assert a.x >= 0 and a.x + a.width <= places.width and a.bottom <= places.height
    for unit, frame in places.units:
        for name in unit.nodes:
            assert frame.y <= places.nodes[name].y and places.nodes[name].bottom <= frame.bottom


def test_a_long_chain_is_folded_into_columns() -> None:
    names = [f"n{i}" for i in range(40)]
    parts = [Unit(n, (n,), (), n) for n in names]
    sources = {b: [a] for a, b in pairwise(["x", *names])}
    places = layout(["x"], parts, sources)
    assert 1 < places.width / places.height < 2.5
    assert places.columns["x"] == 0 and max(places.columns.values()) > 2
    order = [places.columns[n] for n in names]
    assert order == sorted(order)
    for name in names:
        box, column = places.nodes[name], places.columns[name]
        assert places.gutter(column) < box.x and box.x + box.width < places.gutter(column + 1)


def test_an_empty_network_has_a_layout() -> None:
    assert layout(["x"], [], {}).nodes.keys() == {"x"}
    assert layout([], [Unit("u", ("a",), (), "a")], {}).nodes.keys() == {"a"}


def test_interleaved_calls_in_turn() -> None:
    calls: list[str] = []
    timings = interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1
    )
    assert calls == ["a", "b"] * 4
    assert timings["a"].ratio == pytest.approx(1.0)
    assert timings["b"].low <= timings["b"].median <= timings["b"].high
