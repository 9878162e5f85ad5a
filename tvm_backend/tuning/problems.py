"""The scheduling problems of a lowered network, and their solutions put back into it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fxquant.errors import ConfigError
from tvm_backend.kernel import Kernel, Variants
from tvm_backend.program import Program, Step
from tvm_backend.tuning.database import Database, Entry


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Layers that share one schedule.

    Attributes:
        kernel: Kernel of the first of them.
        nodes: Graph nodes of all.
    """

    kernel: Kernel
    nodes: tuple[str, ...]

    @property
    def variants(self) -> Variants:
        """Its schedules."""
        assert self.kernel.variants is not None
        return self.kernel.variants

    @property
    def name(self) -> str:
        """What the database calls it."""
        return self.variants.problem


@dataclass(frozen=True, slots=True)
class Replayed:
    """Which layers take their schedule from a file.

    Attributes:
        tuned: Graph nodes whose schedule the file decides.
        untuned: Graph nodes left to the cost model.
    """

    tuned: tuple[str, ...]
    untuned: tuple[str, ...]

    def __str__(self) -> str:
        every = len(self.tuned) + len(self.untuned)
        rest = f"; the cost model decided {', '.join(self.untuned)}" if self.untuned else ""
        return f"{len(self.tuned)} of {every} layers take their schedule from the file{rest}"


def problems(program: Program) -> list[Problem]:
    """The distinct problems of a network."""
    found: dict[str, Problem] = {}
    for step in program.steps:
        if not isinstance(step, Step) or step.kernel.variants is None:
            continue
        name = step.kernel.variants.problem
        known = found.get(name, Problem(step.kernel, ()))
        found[name] = replace(known, nodes=(*known.nodes, step.node))
    return list(found.values())


def replay(program: Program, database: Database) -> tuple[Program, Replayed]:
    """The network with the schedules of a database; nothing is measured.

    Raises:
        ConfigError: A schedule does not exist for its problem.
    """
    steps, tuned, untuned = [], [], []
    for step in program.steps:
        if not isinstance(step, Step) or step.kernel.variants is None:
            steps.append(step)
            continue
        entry = database.entries.get(step.kernel.variants.problem)
        decided = entry is not None and entry.best is not None
        (tuned if decided else untuned).append(step.node)
        kernel = _chosen(step.kernel, database, entry) if entry and decided else step.kernel
        steps.append(replace(step, kernel=kernel))
    return replace(program, steps=tuple(steps)), Replayed(tuple(tuned), tuple(untuned))


def without_variants(program: Program) -> Program:
    """The network without the means to schedule it otherwise, which hold a copy of all weights."""
    steps = tuple(
        replace(s, kernel=replace(s.kernel, variants=None)) if isinstance(s, Step) else s
        for s in program.steps
    )
    return replace(program, steps=steps)


def _chosen(kernel: Kernel, database: Database, entry: Entry) -> Kernel:
    variants = kernel.variants
    assert variants is not None
    if entry.best == variants.default:
        return kernel
    known = variants.by_name()
    if entry.best not in known:
        raise ConfigError(
            f"{database.path} asks for a schedule that does not exist",
            where=entry.problem,
            why=f"{entry.best!r} is none of the {len(known)} this version can make, "
            f"such as {variants.default!r}",
            remedy="remove the line from the file, or tune again into another file",
        )
    return kernel.scheduled(known[entry.best])
