"""The search of schedules: on made-up times, and once for real."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

import tvm_backend
from fxquant import targets
from fxquant.errors import ConfigError, StageError, TargetError
from tests.backend.integer_nets import residual_net
from tvm_backend.kernel import Kernel
from tvm_backend.lower import lower
from tvm_backend.tuning import Database, Machine, Search, Tuned, problems, result
from tvm_backend.tuning.problems import Problem

TARGET, MACHINE = targets.X86_AVX2, Machine("imaginary", 1)
SLOW, FAST = 1000.0, 400.0  # nanoseconds
Times = Callable[[Kernel], float]


class Laboratory:
    """Runs no kernel: their times are made up, and time passes as they run and are compiled."""

    def __init__(
        self, times: Times, wrong: str = "", interrupt_after: int = -1, compilation: float = 0.0
    ) -> None:
        self.times, self.wrong, self.left = times, wrong, interrupt_after
        self.compilation = compilation
        self.now, self.loaded = 0.0, []

    def load(self, kernels: Sequence[Kernel]) -> list[FakeRunner]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.loaded += [kernel.name for kernel in kernels]
        self.now += self.compilation * len(kernels)
        return [FakeRunner(self, kernel) for kernel in kernels]

    def clock(self) -> float:
        return self.now


class FakeRunner:
    def __init__(self, laboratory: Laboratory, kernel: Kernel) -> None:
        self.laboratory, self.kernel = laboratory, kernel

    def run(self) -> float:
        time = self.laboratory.times(self.kernel)
        self.laboratory.now += time * 1e-3
        return time

    def result(self) -> np.ndarray:
        return np.array([self.laboratory.wrong != "" and self.laboratory.wrong in self.kernel.name])


@pytest.fixture(scope="module")
def found() -> list[Problem]:
    return problems(lower(residual_net(channels=40)[0], TARGET))


def search(
    found: list[Problem], path: Path, laboratory: Laboratory, trials: int = 12,
    time_limit: float | None = None,
) -> Tuned:  # fmt: skip
    database = Database.open(path, TARGET, MACHINE)
    with tqdm(total=len(found), disable=True) as bar:
        run = Search(laboratory.load, trials, time_limit, laboratory.clock).run
        run(found, database, bar)
    return result(path, found, database.entries)


def candidate(problem: Problem, position: int) -> tuple[str, str]:
    """`(name of the schedule, name of the kernel)`."""
    variant = problem.variants.ranked()[position]
    return variant.name, problem.kernel.scheduled(variant).name


def constant(_: Kernel) -> float:
    return SLOW


def test_problems_are_distinct_and_have_all_layers(found: list[Problem]) -> None:
    assert sorted(len(problem.nodes) for problem in found) == [1, 1, 1, 1]
    net = residual_net()[0]
    expected = sum("conv2d" in n.name or "linear" in n.name for n in net.graph.nodes)
    assert sum(len(problem.nodes) for problem in problems(lower(net, TARGET))) == expected


def test_the_fastest_schedule_wins(found: list[Problem], tmp_path: Path) -> None:
    schedule, kernel = candidate(found[1], 10)
    almost = candidate(found[2], 5)[1]
    times = {kernel: FAST, almost: 0.99 * SLOW}
    tuned = search(found, tmp_path / "t", Laboratory(lambda k: times.get(k.name, SLOW)))
    best = {layer.nodes: layer for layer in tuned.layers}
    assert best[found[1].nodes].best == schedule and best[found[1].nodes].ratio == FAST / SLOW
    assert best[found[1].nodes].miss == pytest.approx(SLOW / FAST - 1)
    others = [layer for layer in tuned.layers if layer.nodes != found[1].nodes]
    assert all(layer.best == layer.default and layer.ratio == 1 for layer in others)
    assert tuned.ratio == pytest.approx((3 + FAST / SLOW) / 4) and not tuned.undecided
    assert schedule in str(tuned) and "150.0% in the worst layer" in str(tuned)


def test_a_lucky_measurement_is_not_believed(found: list[Problem], tmp_path: Path) -> None:
    """Fast in the heats, slow ever after."""
    kernel = candidate(found[0], 3)[1]
    runs: list[float] = []

    def times(k: Kernel) -> float:
        if k.name != kernel:
            return SLOW
        runs.append(FAST if len(runs) < 19 else 2 * SLOW)
        return runs[-1]

    tuned = search(found, tmp_path / "t", Laboratory(times))
    assert {layer.best == layer.default for layer in tuned.layers} == {True} and len(runs) > 40


def test_clearly_slower_schedules_drop_out_early(found: list[Problem], tmp_path: Path) -> None:
    slow = candidate(found[0], 3)[1]
    ran: list[str] = []

    def times(k: Kernel) -> float:
        ran.append(k.name)
        return 10 * SLOW if k.name == slow else SLOW

    search(found[:1], tmp_path / "t", Laboratory(times))
    assert 1 < ran.count(slow) < ran.count(candidate(found[0], 4)[1]) / 2


def test_a_finished_search_measures_nothing(found: list[Problem], tmp_path: Path) -> None:
    first = search(found, tmp_path / "t", Laboratory(constant))
    before = (tmp_path / "t").read_bytes()
    again = Laboratory(constant)
    assert search(found, tmp_path / "t", again) == first and not again.loaded
    assert (tmp_path / "t").read_bytes() == before


@pytest.mark.parametrize("after", [1, 4, 6, 8, 11])
def test_an_interrupted_search_goes_on(found: list[Problem], tmp_path: Path, after: int) -> None:
    whole, parts = Laboratory(constant), Laboratory(constant, interrupt_after=after)
    expected = search(found, tmp_path / "whole", whole, trials=20)
    with pytest.raises(KeyboardInterrupt):
        search(found, tmp_path / "t", parts, trials=20)
    rest = Laboratory(constant)
    tuned = search(found, tmp_path / "t", rest, trials=20)
    assert tuned.layers == expected.layers
    defaults = {problem.kernel.name for problem in found}
    measured = [name for name in (*parts.loaded, *rest.loaded) if name not in defaults]
    assert sorted(measured) == sorted(name for name in whole.loaded if name not in defaults)


def test_more_trials_go_on_after_fewer(found: list[Problem], tmp_path: Path) -> None:
    schedule, kernel = candidate(found[0], 15)
    laboratory = Laboratory(lambda k: FAST if k.name == kernel else SLOW)
    few = search(found[:1], tmp_path / "t", laboratory, trials=8)
    assert few.layers[0].best == few.layers[0].default and kernel not in laboratory.loaded
    more = search(found[:1], tmp_path / "t", laboratory, trials=24)
    assert more.layers[0].best == schedule and more.layers[0].tried == 24
    measured = [name for name in laboratory.loaded if name != found[0].kernel.name]
    assert len(measured) == 24 + 1 and measured.count(kernel) == 2  # the winner ran in the final


def test_a_time_limit_goes_where_the_time_is(found: list[Problem], tmp_path: Path) -> None:
    heavy = next(problem for problem in found if "_add" in problem.name)

    def times(k: Kernel) -> float:
        return SLOW * (5 if "_add" in k.name else 1)

    laboratory = Laboratory(times)
    tuned = search(found, tmp_path / "t", laboratory, trials=100, time_limit=4000.0)
    assert tuned.layers[0].nodes == heavy.nodes and len(tuned.layers) == len(found)
    tried = [layer.tried for layer in tuned.layers]
    assert 100 > tried[0] > max(tried[1:]) and laboratory.now < 5000
    assert "_add" in laboratory.loaded[len(found)] and heavy is not found[0]
    none = search(found, tmp_path / "none", Laboratory(times), trials=8, time_limit=1e-9)
    assert not none.layers and len(none.undecided) == 4 and "no time" in str(none)


def test_compilation_counts_against_a_time_limit(found: list[Problem], tmp_path: Path) -> None:
    laboratory = Laboratory(constant, compilation=1e4)
    tuned = search(found, tmp_path / "t", laboratory, trials=100, time_limit=30e4)
    assert len(tuned.layers) == len(found) and laboratory.now < 35e4
    defaults = Laboratory(constant, compilation=1e4)
    search(found, tmp_path / "none", defaults, time_limit=2e4)
    assert len(defaults.loaded) == 2


def test_a_schedule_with_other_results_is_an_error(found: list[Problem], tmp_path: Path) -> None:
    tile = candidate(found[0], 2)[0].partition("__")[0]
    with pytest.raises(StageError, match="computes something else"):
        search(found, tmp_path / "t", Laboratory(constant, wrong=f"_{tile}"))


def test_measurements_of_another_default_are_dropped(found: list[Problem], tmp_path: Path) -> None:
    search(found[:1], tmp_path / "t", Laboratory(constant))
    head, entry = (tmp_path / "t").read_text().splitlines()
    other = json.loads(entry) | {"default": "t9x9x9p__old"}
    (tmp_path / "t").write_text(f"{head}\n{json.dumps(other)}\n")
    laboratory = Laboratory(constant)
    tuned = search(found[:1], tmp_path / "t", laboratory)
    assert tuned.layers[0].default == found[0].variants.default and len(laboratory.loaded) > 12


def test_a_search_for_real(tmp_path: Path) -> None:
    graph, x = residual_net(12)
    path = tmp_path / "t"
    tuned = tvm_backend.tune(graph, path, trials=1, threads=1, progress=False)
    assert len(tuned.layers) == 4 and not tuned.undecided
    assert all(layer.microseconds > 0 and layer.tried <= 1 for layer in tuned.layers)
    # One vector of one pixel has a single schedule on the widest targets.
    assert [layer.tried for layer in tuned.layers if "conv" in layer.nodes[0]] == [1, 1, 1]
    compiled = tvm_backend.compile(graph, tuned=path, threads=1)
    assert compiled.replayed is not None and len(compiled.replayed.tuned) == 4
    assert torch.equal(compiled(x), graph(x))


def test_only_this_machine_can_be_measured(tmp_path: Path) -> None:
    graph, _ = residual_net()
    with pytest.raises(TargetError, match="on the device itself"):
        tvm_backend.tune(graph, tmp_path / "t", targets.ARMV7_NEON)
    with pytest.raises(ConfigError, match="nothing to search"):
        tvm_backend.tune(graph, tmp_path / "t", trials=0)
    with pytest.raises(ConfigError, match="nothing to search"):
        tvm_backend.tune(graph, tmp_path / "t", time_limit=0)
    with pytest.raises(ConfigError, match="cannot be compiled"):
        tvm_backend.tune(None, tmp_path / "t")  # type: ignore[arg-type]
    assert not (tmp_path / "t").exists()
