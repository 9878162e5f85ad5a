"""Memory plan of a standalone program: one arena, offsets by lifetime.

A value whose last reader can overwrite it shares its memory with that reader's result. What is
left is an offline storage allocation problem: values are placed one after the other at the lowest
offset that no value alive at the same time uses. The order decides how well they fit, so several
are tried, and then values that ended at the top are moved to the front, until the plan meets the
lower bound or nothing improves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_backend.layout import round_up
from tvm_backend.program import Program, Step, leaves

ALIGNMENT = 64
_IMPROVEMENTS = 64  # reorderings tried after the fixed orders


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Memory in use.

    Attributes:
        name: The value, the first one of a chain that shares memory.
        nbytes: Its size.
        first: Step that makes it.
        last: Last step that reads it.
        successors: Values that overwrite it, in order.
    """

    name: str
    nbytes: int
    first: int
    last: int
    successors: tuple[str, ...] = ()

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Offsets in the arena.

    Attributes:
        offsets: Byte offset of each intermediate value.
        nbytes: Size of the arena.
        lower_bound: The most bytes that are alive at one step; no plan is smaller.
    """

    offsets: Mapping[str, int]
    nbytes: int
    lower_bound: int


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
    inner = {name for name in first if name not in outside}
    after = _overwrites(program, inner, last)
    results = []
    for name in sorted(inner - set(after.values()), key=first.__getitem__):
        chain = [name]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        size = _nbytes(program, name)
        results.append(Lifetime(name, size, first[name], last[chain[-1]], tuple(chain[1:])))
    return results


def overwritten(program: Program) -> set[str]:
    """Names of the kernels that some step runs in place."""
    shared = {n: v for v in lifetimes(program) for n in (v.name, *v.successors)}
    return {
        step.kernel.name
        for step in program.steps
        if isinstance(step, Step)
        and step.output in shared
        and any(shared.get(name) is shared[step.output] for name in step.inputs)
    }


def _overwrites(program: Program, inner: set[str], last: Mapping[str, int]) -> dict[str, str]:
    """Value -> the value that takes its memory: it has the same size and nobody reads on."""
    after: dict[str, str] = {}
    for index, step in enumerate(program.steps):
        if not isinstance(step, Step) or step.output not in inner:
            continue
        readers = Counter(step.inputs)
        for position in step.kernel.in_place:
            name = step.inputs[position]
            if name in inner and last[name] == index and readers[name] == 1:
                after[name] = step.output
                break
    return after


def _nbytes(program: Program, name: str) -> int:
    storage = program.values[name].storage
    return storage.size * np.dtype(storage.dtype).itemsize


def lower_bound(values: Sequence[Lifetime]) -> int:
    """The most bytes alive at one step, every value rounded up to the alignment."""
    steps = range(max((v.last for v in values), default=-1) + 1)
    sizes = (
        sum(round_up(v.nbytes, ALIGNMENT) for v in values if v.first <= step <= v.last)
        for step in steps
    )
    return max(sizes, default=0)


def plan_memory(values: Sequence[Lifetime]) -> MemoryPlan:
    """Place values in one arena."""
    bound = lower_bound(values)
    orders = [
        sorted(values, key=lambda v: (-v.nbytes, v.first, v.name)),
        sorted(values, key=lambda v: (-v.nbytes * (v.last - v.first + 1), v.first, v.name)),
        sorted(values, key=lambda v: (v.first - v.last, -v.nbytes, v.name)),
        sorted(values, key=lambda v: (v.first, -v.nbytes, v.name)),
    ]
    order = min(orders, key=lambda o: _end(_place(o)))
    best = placed = _place(order)
    for _ in range(_IMPROVEMENTS):
        if _end(best) == bound:
            break
        top = max(placed, key=lambda pair: (pair[0] + pair[1].nbytes, pair[1].name))[1]
        if order[0] == top:
            break
        order = [top, *(v for v in order if v != top)]
        placed = _place(order)
        best = min(best, placed, key=_end)
    offsets = {n: offset for offset, v in best for n in (v.name, *v.successors)}
    return MemoryPlan(offsets, _end(best), bound)


_Placed = list[tuple[int, Lifetime]]


def _place(order: Sequence[Lifetime]) -> _Placed:
    """Every value at the lowest free offset, in order."""
    placed: _Placed = []
    for value in order:
        offset = 0
        for start, other in sorted(
            ((o, p) for o, p in placed if p.overlaps(value)), key=lambda pair: pair[0]
        ):
            if offset + value.nbytes <= start:
                break
            offset = max(offset, round_up(start + other.nbytes, ALIGNMENT))
        placed.append((offset, value))
    return placed


def _end(placed: _Placed) -> int:
    return round_up(max((offset + v.nbytes for offset, v in placed), default=0), ALIGNMENT)
