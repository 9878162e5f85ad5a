"""Windows of large maps: their results equal the full map's where they count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.solvers import UWC, Scope, Training, UnitProblem, UnitSolution, UnitSolver
from fxquant.solvers.crop import Crop, find_crop
from tests.tolerance import assert_close

IMAGES = torch.randn(6, 3, 40, 44, generator=torch.Generator().manual_seed(3))


class Strided(nn.Module):
    """A unit of stride 2 with a rim of one position on each side, one-sided zero padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4)
        self.point = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.stem(x).relu(), (0, 1, 0, 1))
        return self.point(self.depthwise(x).relu())


class Global(nn.Module):
    """Every position depends on all others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Look(UnitSolver):
    """Calls a check with every unit, while the float network is still there."""

    def __init__(self, check: Callable[[UnitProblem], None]) -> None:
        self.check = check

    def solve_unit(self, problem: UnitProblem, rng: torch.Generator) -> UnitSolution:
        self.check(problem)
        weights = {layer.weight_name: layer.start for layer in problem.layers.values()}
        return UnitSolution(weights, {n: x.start_bias for n, x in problem.layers.items()})


def crops(model: nn.Module, size: int) -> dict[str, Crop | None]:
    """Windows of every unit, checked against the full maps, by name of the first layer."""
    found: dict[str, Crop | None] = {}

    def check(problem: UnitProblem) -> None:
        crop = found[next(iter(problem.layers))] = find_crop(problem, size)
        for seed in range(5 if crop is not None else 0):
            assert crop is not None
            place = crop.draw(torch.Generator().manual_seed(seed))
            inputs = {n: crop.of_input(x, place) for n, x in problem.float_inputs.items()}
            for name, result in problem.program.run(inputs).items():
                expected = crop.of_target(problem.targets[name], place)
                assert_close(crop.of_result(result), expected, 1e-4)

    torch.manual_seed(0)
    fxquant.quantize(model.eval(), [IMAGES], solver=Look(check), progress=False)
    return found


def test_a_window_gives_the_results_of_the_full_map() -> None:
    found = crops(Strided(), 16)
    assert found["depthwise"] == Crop(40, 44, 16, 2, 1)
    assert found["stem"] == Crop(40, 44, 16, 1, 0)


def test_windows_reach_every_part_of_the_map() -> None:
    crop, rng = Crop(40, 44, 16, 2, 1), torch.Generator().manual_seed(0)
    places = [crop.draw(rng) for _ in range(500)]
    assert {p[0] for p in places} == set(range(13)) and {p[1] for p in places} == set(range(15))


def test_no_windows_where_results_depend_on_the_whole_map_or_maps_are_small() -> None:
    assert crops(Global(), 16)["gate"] is None
    assert set(crops(Strided(), 32).values()) == {None}


def test_training_on_windows_improves_the_full_map() -> None:
    torch.manual_seed(0)
    model = Strided().eval()
    config = fxquant.Config(default=fxquant.OpConfig(3, 8))

    def error(training: Training | None) -> float:
        solver = fxquant.solvers.RoundToNearest() if training is None else UWC(training)
        result = fxquant.quantize(model, [IMAGES], config=config, solver=solver, progress=False)
        with torch.no_grad():
            return float((result(IMAGES) - model(IMAGES)).square().mean())

    windows = Training(iterations=80, batch=4, window=16, code_rate=1.5e-2)
    assert error(windows) < 0.9 * error(None)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_no_windows_where_an_operator_addresses_the_full_map(pool: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Conv2d(4, 5, 1), nn.ReLU())
    solver = UWC(Training(iterations=2, batch=2, window=16), region=Scope.LAYER)
    result = fxquant.quantize(model.eval(), [IMAGES], solver=solver, progress=False)
    with torch.no_grad():
        assert_close(result(IMAGES), model(IMAGES), 0.05)
