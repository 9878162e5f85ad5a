"""Tables of accuracy cells: order, averages, marks of stale figures; the document has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.document import rewritten
from benchmarks.tables import FOOTNOTE, STALE, base_of, settings, tables

ROOT = Path(__file__).resolve().parent.parent.parent


def cell(recipe: str, config: str, drop: float, sqnr: float = 10.0) -> dict[str, Any]:
    return {"fp32": 80.0, "top1": 80.0 - drop, "drop": drop, "agreement": 90.0, "sqnr": sqnr,
            "seconds": 60.0, "exact": True, "images": 500,
            "solver": settings("net", recipe, config), "first_bits": 8,
            "residual_bits": base_of(config).residual_bits}  # fmt: skip


def cells_of(*keys: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """Cells named `config:recipe:seed`, with drops 1, 2, ..."""
    found = {}
    for number, key in enumerate(keys, 1):
        config, recipe, seed = key.split(":")
        found[f"net:{config}:{recipe}:{seed}"] = {**cell(recipe, config, number), **changes}
    return found


def test_recipes_are_rows_and_seeds_are_averaged() -> None:
    text = tables(cells_of("W4A8:uwc:0", "W4A8:uwc:1", "W8A8:rtn-max:0", "W4A8:default:0"))
    lines = text["solvers net"].splitlines()
    assert lines[0] == "| recipe | W8A8 | W4A8 |"
    assert lines[2] == "| rtn-max | +3.00 · 10.0 · 90.0 (60) |  |"
    assert lines[3] == "| uwc |  | +1.50 ± 0.5 · 10.0 ± 0.0 · 90.0 ± 0.0 (60) |"
    assert lines[4] == "| default |  | +4.00 · 10.0 · 90.0 (60) |"
    assert "| net | W4A8 | 80.00 | 76.00 | +4.00 | 90.0 | 10.0 | 60 | yes | 500 |" in text[
        "default"
    ].splitlines()  # fmt: skip


def test_a_result_that_is_not_exact_shows() -> None:
    assert "| NO |" in tables(cells_of("W8A8:default:0", exact=False))["default"]


def test_figures_of_earlier_settings_are_marked() -> None:
    fresh = tables(cells_of("W8A8:default:0", "W8A8:gptq:0"))
    assert STALE not in "".join(fresh.values())
    for changes in ({"solver": "(GPTQ(rows=1),)"}, {"first_bits": 4}, {"residual_bits": 6}):
        old = tables(cells_of("W8A8:default:0", "W8A8:gptq:0", **changes))
        for name in ("default", "solvers net"):
            assert STALE in old[name].splitlines()[2]
            assert old[name].endswith(FOOTNOTE)


def test_mixed_widths_stand_beside_uniform_ones_of_the_same_recipe() -> None:
    text = tables(cells_of("M4A8-milp:gptq:0", "W4A8:gptq:0", "W4A8:uwc:0", "W3A3:gptq:0"))
    lines = text["mixed"].splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| net | gptq | uniform | 8 bits | +2.00")
    assert lines[3].startswith("| net | gptq | measured sensitivity, integer program | 8 bits |")


def test_units_against_layers() -> None:
    """The start stands there where it was measured; both others must have been."""
    keys = ("W2A4:uwc-layer:0", "W2A4:uwc:0", "W3A3:uwc-layer:0", "W3A3:default:0")
    assert tables(cells_of(*keys))["regions"].splitlines()[2:] == [
        "| net | W2A4 |  | +1.00 · 10.0 | +2.00 · 10.0 |"
    ]
    both = tables(cells_of(*keys, "W3A3:uwc:0", "W3A3:gptq:0"))["regions"]
    assert "| net | W3A3 | +6.00 · 10.0 | +3.00 · 10.0 | +5.00 · 10.0 |" in both


def test_seven_bits_against_eight() -> None:
    text = tables(cells_of("W8A8:easyquant:0", "W7A7:easyquant:0"))["int7"]
    assert text.splitlines()[2] == "| net | +1.00 · 10.0 | +2.00 · 10.0 | +1.00 |"
    assert "int7" not in tables(cells_of("W8A8:easyquant:0"))


def test_only_what_is_between_markers_changes() -> None:
    text = "a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    once = rewritten(text, {"x": "| new |", "y": "| other |"})
    assert once == (
        "a\n<!-- table x -->\n\n| new |\n\n<!-- end -->\nb\n"
        "<!-- table y -->\n\n| other |\n\n<!-- end -->\n"
    )
    assert rewritten(once, {"x": "| new |", "y": "| other |"}) == once
    with pytest.raises(KeyError, match="no table 'y'"):
        rewritten(text, {"x": ""})


def test_the_document_shows_what_was_measured() -> None:
    measured = tables(json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text()))
    text = (ROOT / "docs" / "results.md").read_text()
    assert "<!-- table default -->" in text
    assert rewritten(text, measured) == text
