"""Who is faster? Kernels take turns, and ratios within a round are compared.

A machine whose clock changes is slow for all kernels of a round alike; the median over the rounds
forgets the rounds in which it was not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_backend.tuning.stopwatch import Runner

_HEATS = ((4, 1.25), (5, 1.1), (8, float("inf")))  # rounds, and who stays: ratios below this
_DUEL_ROUNDS = 31
_CLEAR = 75  # percentile of a duel's ratios that must be below 1


def heats(default: Runner, runners: Sequence[Runner]) -> list[float]:
    """Median ratio of every runner's time to the default's; clearly slower ones drop out early."""
    ratios: list[list[float]] = [[] for _ in runners]
    alive = list(range(len(runners)))
    for rounds, limit in _HEATS:
        for turn in range(rounds):
            base = default.run()
            for i in (*alive[turn % len(alive) :], *alive[: turn % len(alive)]):
                ratios[i].append(runners[i].run() / base)
        alive = [i for i in alive if np.median(ratios[i]) < limit]
        if not alive:
            break
    return [float(np.median(each)) for each in ratios]


def duel(default: Runner, other: Runner, margin: float) -> tuple[float, bool]:
    """`(median ratio, whether the other one is faster)`, from many rounds in changing order.

    Args:
        default: The one to beat.
        other: The other one.
        margin: Share of the default's time it must save.
    """
    ratios = []
    for turn in range(_DUEL_ROUNDS):
        first, second = (default, other) if turn % 2 else (other, default)
        times = first.run(), second.run()
        base, time = times if turn % 2 else times[::-1]
        ratios.append(time / base)
    ratio = float(np.median(ratios))
    return ratio, ratio < 1 - margin and float(np.percentile(ratios, _CLEAR)) < 1


def median_time(runner: Runner, rounds: int = 5) -> float:
    """Median nanoseconds of a runner, after one run that does not count."""
    runner.run()
    return float(np.median([runner.run() for _ in range(rounds)]))
