"""Who is faster? Kernels take turns, so that a change of the clock meets all of them.

Interruptions only add time: the fastest runs tell what a kernel takes, the median of the ratios
within a round whether that is so most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_backend.tuning.stopwatch import Runner

_HEATS = ((4, 1.25), (5, 1.1), (8, float("inf")))  # rounds, and who stays: ratios below this
_DUEL_ROUNDS = 31


def heats(default: Runner, runners: Sequence[Runner]) -> list[float]:
    """Ratio of every runner's fastest run to the default's; slower ones drop out early."""
    base: list[float] = []
    times: list[list[float]] = [[] for _ in runners]
    ratios = [1.0] * len(runners)
    alive = list(range(len(runners)))
    for rounds, limit in _HEATS:
        for turn in range(rounds):
            base.append(default.run())
            for i in (*alive[turn % len(alive) :], *alive[: turn % len(alive)]):
                times[i].append(runners[i].run())
        for i in alive:
            ratios[i] = min(times[i]) / min(base)
        alive = [i for i in alive if ratios[i] < limit]
        if not alive:
            break
    return ratios


def duel(default: Runner, other: Runner) -> float:
    """Ratio of the other one's time to the default's, from many rounds in changing order.

    The larger of the ratio of the fastest runs and the median ratio.
    """
    pairs = []
    for turn in range(_DUEL_ROUNDS):
        if turn % 2:
            pairs.append((default.run(), other.run()))
        else:
            time = other.run()
            pairs.append((default.run(), time))
    base, times = np.array(pairs).T
    return float(max(times.min() / base.min(), np.median(times / base)))


def median_time(runner: Runner, rounds: int = 5) -> float:
    """Median nanoseconds of a runner, after one run that does not count."""
    runner.run()
    return float(np.median([runner.run() for _ in range(rounds)]))
