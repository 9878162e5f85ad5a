"""What a search found, as a table: how much it gains, and how good the cost model was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_backend.tuning.database import Entry
from tvm_backend.tuning.problems import Problem


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """Layers that share a schedule.

    Attributes:
        nodes: Graph nodes.
        default: The cost model's schedule.
        best: The chosen schedule.
        ratio: Time of the chosen schedule over the default's.
        microseconds: Time of the default schedule, of one layer.
        tried: Number of schedules measured.
    """

    nodes: tuple[str, ...]
    default: str
    best: str
    ratio: float
    microseconds: float
    tried: int

    @property
    def miss(self) -> float:
        """How much longer the cost model's schedule takes than the best one found; 0.1 is 10 %."""
        return 1 / self.ratio - 1


@dataclass(frozen=True, slots=True)
class Tuned:
    """Result of `tune`; `str()` gives the table.

    Attributes:
        path: The file of schedules, for `compile(..., tuned=path)`.
        layers: What was decided, by falling share of the time.
        undecided: Graph nodes the time did not suffice for; the cost model decides them.
    """

    path: Path
    layers: tuple[TunedLayer, ...]
    undecided: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Time of all decided layers over what they take by default."""
        before = sum(x.microseconds * len(x.nodes) for x in self.layers)
        after = sum(x.microseconds * len(x.nodes) * x.ratio for x in self.layers)
        return after / before if before else 1.0

    def __str__(self) -> str:
        width = max([len(x.nodes[0]) for x in self.layers] + [5])
        tile = max([len(x.default) for x in self.layers] + [7])
        lines = [
            f"{'layer':{width}s}  {'n':>2s} {'us':>8s} {'ratio':>6s} {'tried':>5s}  "
            f"{'default':{tile}s}  best"
        ]
        for x in self.layers:
            best = "=" if x.best == x.default else x.best
            lines.append(
                f"{x.nodes[0]:{width}s}  {len(x.nodes):2d} {x.microseconds:8.1f} {x.ratio:6.3f} "
                f"{x.tried:5d}  {x.default:{tile}s}  {best}"
            )
        worst = max((x.miss for x in self.layers), default=0.0)
        lines.append(
            f"tuned layers take {self.ratio:.3f} of their time; without a search the cost model "
            f"is {1 / self.ratio - 1:.1%} behind in all, {worst:.1%} in the worst layer"
        )
        if self.undecided:
            lines.append(f"no time was left for {', '.join(self.undecided)}")
        return "\n".join(lines)


def result(path: Path, problems: Sequence[Problem], entries: Mapping[str, Entry]) -> Tuned:
    """The result, from the problems of a network and the entries of its database."""
    layers, undecided = [], []
    for problem in problems:
        entry = entries.get(problem.name)
        if entry is None or entry.best is None:
            undecided += problem.nodes
            continue
        layers.append(
            TunedLayer(
                problem.nodes, entry.default, entry.best, entry.ratio, entry.default_ns / 1e3,
                len(entry.tried),
            )
        )  # fmt: skip
    layers.sort(key=lambda x: -x.microseconds * len(x.nodes))
    return Tuned(path, tuple(layers), tuple(undecided))
