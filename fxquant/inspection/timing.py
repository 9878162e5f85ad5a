"""Comparing latencies on a machine whose clock and load drift: all candidates in turn.

One call of each candidate a round; drift then hits all alike, and ratios are taken within the
round before the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one candidate.

    Attributes:
        median: Milliseconds.
        low: Quarter of the rounds are faster, milliseconds.
        high: Quarter of the rounds are slower, milliseconds.
        ratio: Median over the rounds of this candidate's time to the first one's.
    """

    median: float
    low: float
    high: float
    ratio: float


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warmup: int = 3,
    calls: int = 1,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Time the candidates round-robin.

    Args:
        candidates: What to call, by name; ratios are relative to the first.
        rounds: Measured rounds.
        warmup: Rounds before, not measured.
        calls: Calls of each candidate in a round, of which the median counts.
        pause: Seconds to wait before each candidate's turn, so that the idle threads of the one
            before have stopped spinning; an unmeasured call then wakes its own.
    """
    times = np.empty((rounds, len(candidates)))
    for i in range(-warmup, rounds):
        for j, call in enumerate(candidates.values()):
            if pause:
                time.sleep(pause)
                call()
            elapsed = [_milliseconds(call) for _ in range(calls)]
            if i >= 0:
                times[i, j] = np.median(elapsed)
    low, median, high = np.percentile(times, [25, 50, 75], axis=0)
    ratio = np.median(times / times[:, :1], axis=0)
    return {
        name: Timing(float(median[j]), float(low[j]), float(high[j]), float(ratio[j]))
        for j, name in enumerate(candidates)
    }


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
