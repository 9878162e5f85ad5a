"""Search: measure the schedules of every problem, keep the best, write all of it down.

Schedules are tried in the order the cost model ranks them. The three best of a problem then meet
the cost model's choice once more, and the winner must be clearly faster: the best of many noisy
measurements alone would be luck.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from tqdm.auto import tqdm

from fxquant.errors import StageError
from tvm_backend.kernel import Variant
from tvm_backend.tuning.database import Database, Entry
from tvm_backend.tuning.problems import Problem
from tvm_backend.tuning.race import duel, heats, median_time
from tvm_backend.tuning.stopwatch import Loader, Runner

BATCH = 8  # schedules compiled and measured together
FINALISTS = 3
MARGIN = 0.02  # share of the time a schedule must save to be chosen


@dataclass(frozen=True, slots=True)
class Search:
    """How to search.

    Attributes:
        load: Makes kernels ready to run.
        trials: Schedules to try a problem.
        time_limit: Seconds for everything, or None.
        clock: Seconds since some moment.
    """

    load: Loader
    trials: int
    time_limit: float | None = None
    clock: Callable[[], float] = time.monotonic

    def run(self, problems: Sequence[Problem], database: Database, bar: tqdm) -> None:
        """Search all problems; the database is written after every batch.

        A time limit is shared out by the time the layers take.

        Args:
            problems: The problems of a network.
            database: What is known, and where to write.
            bar: Progress, one step a problem.
        """
        end = float("inf") if self.time_limit is None else self.clock() + self.time_limit
        todo = []
        for problem in problems:
            if self._finished(problem, database):
                bar.update()
                continue
            if self.clock() >= end:
                break
            bar.set_postfix_str("timing the default schedules")
            default = self.load([problem.kernel])[0]
            todo.append((problem, default, median_time(default) * len(problem.nodes)))
        todo.sort(key=lambda item: -item[2])
        share = sum(cost for _, _, cost in todo)
        for problem, default, cost in todo:
            left = end - self.clock()
            if left <= 0:
                break
            deadline = end if self.time_limit is None else self.clock() + left * cost / share
            share -= cost
            for entry in self._problem(problem, default, database.entries, deadline):
                database.put(entry)
                best = min(entry.tried.values(), default=1.0)
                bar.set_postfix_str(_status(problem, best, end - self.clock()))
            bar.update()

    def _finished(self, problem: Problem, database: Database) -> bool:
        entry = database.entries.get(problem.name)
        if entry is None or entry.best is None or entry.default != problem.variants.default:
            return False
        return not self._untried(problem, entry)

    def _untried(self, problem: Problem, entry: Entry) -> list[Variant]:
        """Schedules to measure, the most promising first."""
        wanted = (
            variant
            for variant in problem.variants.ranked()
            if variant.name not in (*entry.tried, entry.default)
        )
        return list(islice(wanted, max(self.trials - len(entry.tried), 0)))

    def _problem(
        self, problem: Problem, default: Runner, known: Mapping[str, Entry], deadline: float
    ) -> Iterator[Entry]:
        """What is known about a problem after every batch, at last its decision."""
        entry = known.get(problem.name)
        if entry is None or entry.default != problem.variants.default:  # ratios of another one
            entry = Entry(problem.name, problem.variants.default, median_time(default))
        for batch in self._batches(self._untried(problem, entry), deadline):
            ratios = heats(default, self._ready(problem, default, batch))
            measured = dict(zip((variant.name for variant in batch), ratios, strict=True))
            entry = replace(entry, best=None, ratio=1.0, tried={**entry.tried, **measured})
            yield entry
        yield self._decided(problem, default, entry)

    def _batches(self, untried: Sequence[Variant], deadline: float) -> Iterator[Sequence[Variant]]:
        """As many schedules at a time as the time left suffices for, with the final after them.

        How long a schedule takes is not known before the first one.
        """
        first, count = 0, BATCH if deadline == float("inf") else 1
        while first < len(untried):
            start = self.clock()
            yield untried[first : first + count]
            first, now = first + count, self.clock()
            if now >= deadline:
                break
            pace = (now - start) / count
            count = int(min(BATCH, max(1, (deadline - now) / pace - FINALISTS)))

    def _ready(
        self, problem: Problem, default: Runner, variants: Sequence[Variant]
    ) -> Sequence[Runner]:
        """Runners of schedules, each of which has computed what the default does."""
        runners = self.load([problem.kernel.scheduled(variant) for variant in variants])
        for variant, runner in zip(variants, runners, strict=True):
            runner.run()
            if not np.array_equal(runner.result(), default.result()):
                raise StageError(
                    f"schedule {variant.name} computes something else than the default one",
                    where=problem.name,
                    remedy="this is an error of the kernel generator; report it",
                )
        return runners

    def _decided(self, problem: Problem, default: Runner, entry: Entry) -> Entry:
        """The entry with the winner of the final."""
        named = problem.variants.by_name()
        promising = [n for n in sorted(entry.tried, key=entry.tried.__getitem__) if n in named]
        promising = [n for n in promising[:FINALISTS] if entry.tried[n] < 1]
        best, lowest = entry.default, 1.0
        if promising:
            finalists = self._ready(problem, default, [named[name] for name in promising])
            for name, runner in zip(promising, finalists, strict=True):
                ratio = duel(default, runner)
                if ratio < min(lowest, 1 - MARGIN):
                    best, lowest = name, ratio
        return replace(entry, best=best, ratio=lowest, default_ns=median_time(default))


def _status(problem: Problem, best: float, left: float) -> str:
    """What the progress bar says."""
    limit = "" if left == float("inf") else f", {max(left, 0):.0f} s left"
    return f"{problem.nodes[0]} best {best:.2f}{limit}"
