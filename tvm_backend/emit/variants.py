"""The schedules of one convolution: which is the default, and which are worth trying first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tvm_backend.emit.conv_assemble import problem_name
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.kernel import Kernel, Variant, Variants
from tvm_backend.layout import Image
from tvm_backend.macs import Mac
from tvm_backend.schedule.tiles import Tile

_BOTH_ORDERS = 4  # of the best tiles, both orders are worth trying early

M = TypeVar("M", bound=Mac)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A kernel of another kind for the same convolution.

    Attributes:
        kind: What sets it apart, in the problem's name.
        cycles: Expected for the whole layer.
        variant: The kernel.
    """

    kind: str
    cycles: float
    variant: Variant


def best_of(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    schedules: Sequence[tuple[M, Tile]],
    make: Callable[[M, Tile], Kernel],
    others: Sequence[Alternative] = (),
    cycles: float = 0.0,
    weight_bits: int = 8,
) -> Kernel:
    """The kernel of the first schedule or of a faster alternative, with all others as its variants.

    What they are called together leaves out the numbers of a calibration (shifts, clips), so that
    it survives the next one. But it has the idioms, the default one first: which are exact, and
    which is fast, depends on the weights.

    Args:
        operator: Operator in the kernel's name.
        problem: Storages and geometry.
        stage: What happens to the accumulators.
        schedules: All legal ones, the most promising first, each in one order of tiles.
        make: Makes the kernel of a schedule.
        others: Alternatives; all are exact.
        cycles: What the first schedule takes, and an alternative must stay below.
        weight_bits: Bits of a weight in memory in the first schedule.
    """
    mac, tile = schedules[0]
    kind, first = mac.idiom.name, Variant(_name(mac, tile), partial(make, mac, tile))
    best = min(others, key=lambda other: other.cycles, default=None)
    if best is not None and best.cycles < cycles:
        kind, first = best.kind, best.variant
    kinds = {*(mac.idiom.name for mac, _ in schedules), *(other.kind for other in others)}
    second = "" if stage.residual is None else f"_add{stage.residual}"
    start = f"{problem_name(operator, problem, weight_bits)}{second}"
    name = f"{start}__{'+'.join([kind, *sorted(kinds - {kind})])}"

    def ranked() -> list[Variant]:
        direct = {_name(*s): s for s in _worth_trying(problem.output, schedules)}
        found = [Variant(label, partial(make, *schedule)) for label, schedule in direct.items()]
        every = (*(other.variant for other in others), *found)
        return [first, *(variant for variant in every if variant.name != first.name)]

    variants = Variants(name, first.name, problem.input_bounds, ranked)
    return replace(first.make(), variants=variants)


def _name(mac: Mac, tile: Tile) -> str:
    return f"{tile}__{mac.idiom.name}"


def _worth_trying(output: Image, schedules: Sequence[tuple[M, Tile]]) -> list[tuple[M, Tile]]:
    """All schedules, some of them twice; the best of each idiom and order come first."""
    best: dict[str, tuple[M, Tile]] = {}
    for mac, tile in schedules:
        best.setdefault(mac.idiom.name, (mac, tile))
    return [
        *best.values(),
        *schedules[:_BOTH_ORDERS],
        *_reordered(output, schedules[:_BOTH_ORDERS]),
        *schedules,
        *_reordered(output, schedules),
    ]


def _reordered(output: Image, schedules: Iterable[tuple[M, Tile]]) -> list[tuple[M, Tile]]:
    """Schedules in the other order of tiles, where that makes a difference."""
    found = []
    for mac, tile in schedules:
        blocks = -(-output.c // (tile.vectors * mac.idiom.lanes))
        places = output.n * -(-output.h // tile.th) * -(-output.w // tile.tw)
        if blocks > 1 and places > 1:
            found.append((mac, tile.reordered))
    return found
