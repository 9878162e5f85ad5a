"""Markdown tables of accuracy cells."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, pstdev

from benchmarks.configurations import CONFIGURATIONS


def tables(cells: dict[str, dict]) -> str:
    """One table a recipe group: the default recipe by network, then all recipes by network."""
    grouped: dict[tuple[str, str, str], list[dict]] = defaultdict(list)
    for key, cell in cells.items():
        net, config, recipe, _ = key.split(":")
        grouped[net, config, recipe].append(cell)
    parts = [_default_table(grouped)]
    nets = dict.fromkeys(net for net, _, recipe in grouped if recipe != "default")
    parts += [_recipe_table(net, grouped) for net in nets]
    return "\n\n".join(part for part in parts if part)


def _sorted(configs: set[str]) -> list[str]:
    return sorted(configs, key=CONFIGURATIONS.index)


def _default_table(grouped: dict[tuple[str, str, str], list[dict]]) -> str:
    rows = []
    nets = dict.fromkeys(net for net, _, recipe in grouped if recipe == "default")
    for net in nets:
        for config in _sorted({c for n, c, r in grouped if n == net and r == "default"}):
            c = grouped[net, config, "default"][0]
            rows.append(
                f"| {net} | {config} | {c['fp32']:.2f} | {c['top1']:.2f} | {c['drop']:+.2f} | "
                f"{c['agreement']:.1f} | {c['sqnr']:.1f} | {c['seconds']:.0f} | "
                f"{'yes' if c['exact'] else 'NO'} | {c['images']} |"
            )
    header = (
        "| net | config | FP32 | top-1 | drop | agreement % | SQNR dB | calibration s | "
        "compiled == reference | images |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([header, *rows]) if rows else ""


def _recipe_table(net: str, grouped: dict[tuple[str, str, str], list[dict]]) -> str:
    """Rows are recipes, columns configurations: drop · SQNR · agreement (time)."""
    configs = _sorted({c for n, c, _ in grouped if n == net})
    recipes = dict.fromkeys(r for n, _, r in grouped if n == net)
    lines = [
        f"**{net}**: drop in points · SQNR dB · agreement % (calibration s)",
        "",
        f"| recipe | {' | '.join(configs)} |",
        f"|---|{'---|' * len(configs)}",
    ]
    for recipe in recipes:
        values = [_summary(grouped.get((net, config, recipe), [])) for config in configs]
        lines.append(f"| {recipe} | {' | '.join(values)} |")
    return "\n".join(lines)


def _summary(seeds: list[dict]) -> str:
    if not seeds:
        return ""

    def figure(name: str, form: str) -> str:
        values = [cell[name] for cell in seeds]
        spread = f" ± {pstdev(values):.1f}" if len(values) > 1 else ""
        return f"{mean(values):{form}}{spread}"

    numbers = (figure("drop", "+.2f"), figure("sqnr", ".1f"), figure("agreement", ".1f"))
    return f"{' · '.join(numbers)} ({mean(c['seconds'] for c in seeds):.0f})"
