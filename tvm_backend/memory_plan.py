"""Memory plan of a standalone program: one arena, offsets by lifetime.

Values are placed largest first at the lowest offset that no value alive at the same time uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_backend.layout import round_up
from tvm_backend.program import Program, leaves

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A value in use.

    Attributes:
        name: The value.
        nbytes: Its size.
        first: Step that makes it.
        last: Last step that reads it.
    """

    name: str
    nbytes: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Offsets in the arena.

    Attributes:
        offsets: Byte offset of each intermediate value.
        nbytes: Size of the arena.
    """

    offsets: Mapping[str, int]
    nbytes: int


def lifetimes(program: Program) -> list[Lifetime]:
    """Lifetimes of all intermediate values: not of inputs, outputs and constants."""
    outside = {*program.inputs, *program.constants, *leaves(program.outputs)}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(program.steps):
        for name in step.outputs:
            first[name] = last[name] = index
        for name in step.inputs:
            last[name] = index
    return [
        Lifetime(name, _nbytes(program, name), first[name], last[name])
        for name in first
        if name not in outside
    ]


def _nbytes(program: Program, name: str) -> int:
    storage = program.values[name].storage
    return storage.size * np.dtype(storage.dtype).itemsize


def plan_memory(values: Sequence[Lifetime]) -> MemoryPlan:
    """Place values in one arena."""
    placed: list[tuple[int, Lifetime]] = []
    for value in sorted(values, key=lambda v: (-v.nbytes, v.first)):
        offset = 0
        for start, other in sorted(
            ((o, p) for o, p in placed if p.overlaps(value)), key=lambda pair: pair[0]
        ):
            if offset + value.nbytes <= start:
                break
            offset = max(offset, round_up(start + other.nbytes, ALIGNMENT))
        placed.append((offset, value))
    offsets = {value.name: offset for offset, value in placed}
    end = max((offset + value.nbytes for offset, value in placed), default=0)
    return MemoryPlan(offsets, round_up(end, ALIGNMENT))
