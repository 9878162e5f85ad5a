"""Markdown tables of accuracy cells, by name. docs/results.md holds them; see document.py.

A cell keeps the settings its solvers had. Where a recipe means something else by now, the figures
are marked: they are true, but not of what a user gets today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Any

import fxquant
from benchmarks.assets import pixels
from benchmarks.configurations import CONFIGURATIONS, MIXED, PRESETS
from benchmarks.recipes import RECIPES
from fxquant.recipes.defaults import default_steps

STALE = "†"
FOOTNOTE = f"{STALE} measured with earlier settings of the recipe"
FIRST_BITS = 8  # of the first layer's result, in every preset
_AT_MOST_3_BITS = ("W3A8", "W3A3", "W2A8", "W2A4")
_UNIFORM = ("W4A8", "W4A4")
_CHOICES = {
    **dict.fromkeys(_UNIFORM, "uniform"), "greedy": "coding length, greedy",
    "rate": "coding length, nearest width to the rate", "cluster": "coding length, clusters",
    "milp": "measured sensitivity, integer program",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one network, configuration and recipe, one a seed."""

    net: str
    config: str
    recipe: str
    seeds: tuple[Mapping[str, Any], ...]

    def figure(self, name: str, form: str) -> str:
        """Mean over the seeds, with its spread if there are several."""
        values = [cell[name] for cell in self.seeds]
        spread = f" ± {pstdev(values):.1f}" if len(values) > 1 else ""
        return f"{mean(values):{form}}{spread}"

    @property
    def quality(self) -> str:
        """Drop and SQNR."""
        return f"{self.figure('drop', '+.2f')} · {self.figure('sqnr', '.1f')}{self.mark}"

    @property
    def seconds(self) -> float:
        """Of calibration: the processor's, where they were counted, else those that went by."""
        return mean(cell.get("cpu_seconds", cell["seconds"]) for cell in self.seeds)

    @property
    def mark(self) -> str:
        """`STALE` if a cell was measured with other settings than the recipe's present ones."""
        steps, base = settings(self.net, self.recipe, self.config), base_of(self.config)
        present = (steps, FIRST_BITS, base.residual_bits)
        found = {(c["solver"], c["first_bits"], c.get("residual_bits")) for c in self.seeds}
        return "" if found == {present} else STALE


def settings(net: str, recipe: str, config: str) -> str:
    """The solvers of a recipe with all their settings, as cells keep them."""
    steps = RECIPES[recipe]()
    if steps is None:
        steps = default_steps(base_of(config), pixels(net))
    return repr(steps)


def base_of(config: str) -> fxquant.Config:
    """The preset of a configuration; of mixed widths, the one whose size they have."""
    return getattr(fxquant, config if config in PRESETS else f"W4{config[2:4]}")


def grouped(cells: Mapping[str, Mapping[str, Any]]) -> list[Cells]:
    """By network, configuration (in the order of the benchmark) and recipe (likewise)."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for key, cell in cells.items():
        net, config, recipe, _ = key.split(":")
        found[net, config, recipe].append(cell)
    recipes = [*RECIPES]
    order = sorted(found, key=lambda k: (k[0], CONFIGURATIONS.index(k[1]), recipes.index(k[2])))
    return [Cells(*key, tuple(found[key])) for key in order]


def tables(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """All tables that have rows, by name."""
    known = grouped(cells)
    found = {
        "default": _defaults(known),
        **{f"solvers {net}": _solvers(net, known) for net in dict.fromkeys(c.net for c in known)},
        "mixed": _mixed(known),
        "regions": _regions(known),
        "int7": _int7(known),
    }
    return {name: text for name, text in found.items() if text}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; empty without rows. Explains the mark where a figure has it."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    text = "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])
    return f"{text}\n\n{FOOTNOTE}" if STALE in text else text


def _defaults(known: Sequence[Cells]) -> str:
    rows = []
    for group in known:
        if group.recipe != "default":
            continue
        cell = group.seeds[0]
        exact = "yes" if all(c["exact"] for c in group.seeds) else "NO"
        rows.append((
            group.net, group.config + group.mark, f"{cell['fp32']:.2f}",
            group.figure("top1", ".2f"), group.figure("drop", "+.2f"),
            group.figure("agreement", ".1f"), group.figure("sqnr", ".1f"),
            f"{group.seconds:.0f}", exact, str(cell["images"]),
        ))  # fmt: skip
    head = ("net", "config", "FP32", "top-1", "drop", "agreement %", "SQNR dB", "calibration s",
            "compiled == reference", "images")  # fmt: skip
    return _table(head, rows)


def _solvers(net: str, known: Sequence[Cells]) -> str:
    """Rows are recipes, columns configurations: drop · SQNR · agreement (time)."""
    chosen = {(c.recipe, c.config): c for c in known if c.net == net and c.config in PRESETS}
    compared = {config for recipe, config in chosen if recipe != "default"}
    configs = [config for config in PRESETS if config in compared]

    def entry(group: Cells | None) -> str:
        if group is None:
            return ""
        agreement = group.figure("agreement", ".1f")
        return f"{group.quality} · {agreement} ({group.seconds:.0f})"

    recipes = [r for r in RECIPES if any((r, config) in chosen for config in configs)]
    recipes.sort(key=lambda r: r == "default")
    rows = [(r, *(entry(chosen.get((r, config))) for config in configs)) for r in recipes]
    return _table(("recipe", *configs), rows)


def _mixed(known: Sequence[Cells]) -> str:
    """Who chooses the widths, at equal size."""
    nets = {(c.net, c.recipe) for c in known if c.config in MIXED}
    compared = [c for c in known if (c.net, c.recipe) in nets and c.config in (*MIXED, *_UNIFORM)]
    compared.sort(key=lambda c: (c.net, c.recipe, _activations(c.config) == "4"))
    rows = [
        (c.net, c.recipe, _CHOICES[c.config.split("-")[-1]], f"{_activations(c.config)} bits",
         c.quality, c.figure("agreement", ".1f"))
        for c in compared
    ]  # fmt: skip
    head = ("net", "recipe", "widths, 4 bits on average", "activations", "drop · SQNR dB",
            "agreement %")  # fmt: skip
    return _table(head, rows)


def _activations(config: str) -> str:
    """Bits of the activations: 8 of M4A8-greedy and of W4A8."""
    return config[3]


def _regions(known: Sequence[Cells]) -> str:
    """UWC layer by layer against unit by unit, from the same start."""
    cells = {(c.net, c.config, c.recipe): c for c in known}
    rows = []
    for (net, config, recipe), layers in cells.items():
        if recipe != "uwc-layer" or config not in _AT_MOST_3_BITS:
            continue
        units = cells.get((net, config, "uwc"))
        if units is not None:
            start = cells.get((net, config, "gptq"))
            rows.append((net, config, start.quality if start else "", layers.quality,
                         units.quality))  # fmt: skip
    return _table(("net", "config", "start (GPTQ)", "layers", "units"), rows)


def _int7(known: Sequence[Cells]) -> str:
    """EasyQuant at 8 and at 7 bits."""
    cells = {(c.net, c.config): c for c in known if c.recipe == "easyquant"}
    rows = []
    for net in dict.fromkeys(net for net, _ in cells):
        wide, narrow = cells.get((net, "W8A8")), cells.get((net, "W7A7"))
        if wide and narrow:
            lost = mean(c["drop"] for c in narrow.seeds) - mean(c["drop"] for c in wide.seeds)
            rows.append((net, wide.quality, narrow.quality, f"{lost:+.2f}"))
    return _table(("net", "W8A8", "W7A7", "points lost by 7 bits"), rows)
