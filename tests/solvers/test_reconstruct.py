"""The training loop and the solvers made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.fx import Node

import fxquant
from fxquant.errors import ConfigError
from fxquant.numerics.types import QParams, QTensor
from fxquant.ops import Operand
from fxquant.solvers import (
    BRECQ,
    UWC,
    ActivationSteps,
    AdaRound,
    AttentionRound,
    NetworkTuning,
    QDrop,
    Scope,
    Solver,
    Training,
)
from fxquant.solvers.base import UnitProblem, UnitSolution
from fxquant.solvers.reconstruct import Reconstruction
from tests.solvers.nets import NEAREST, X, check_integers, error, residual

RATES = ("code_rate", "scale_rate", "bias_rate", "activation_rate")
HELD_BACK = 12  # a quarter of the samples
SHORT = Training(iterations=30, batch=8, held_back=HELD_BACK, code_rate=1.5e-2)
LEARNED = [
    UWC(SHORT),
    UWC(replace(SHORT, mix=0.5, drop=0.5)),
    UWC(SHORT, Scope.LAYER),
    AttentionRound(SHORT),
    AttentionRound(SHORT, region=Scope.LAYER),
    AdaRound(replace(AdaRound().training, iterations=60, batch=8)),
    BRECQ(replace(BRECQ().training, iterations=60, batch=8)),
    QDrop(replace(QDrop().training, iterations=60, batch=8)),
    ActivationSteps(replace(SHORT, code_rate=0.0, scale_rate=0.0, bias_rate=0.0)),
    NetworkTuning(SHORT),
    NetworkTuning(replace(SHORT, loss="kl")),
]


def quantized(*steps: Solver, config: fxquant.Config = fxquant.W3A3, **kwargs) -> fxquant.Quantized:
    return fxquant.quantize(residual(), [X], config=config, solver=steps, progress=False, **kwargs)


@dataclass(frozen=True)
class Solved:
    """A region, and what a solver made of it."""

    problem: UnitProblem
    solution: UnitSolution

    def weights(self, after: bool) -> dict[str, QTensor]:
        layers = self.problem.layers.values()
        start = {layer.weight_name: layer.start for layer in layers}
        return {**start, **self.solution.weights} if after else start

    def biases(self, after: bool) -> dict[str, Tensor]:
        start = {name: layer.start_bias for name, layer in self.problem.layers.items()}
        return {**start, **self.solution.biases} if after else start

    def grids(self, after: bool) -> dict[str, QParams]:
        start = {**self.problem.fixed_grids, **self.problem.grids}
        return {**start, **self.solution.grids} if after else start

    def error(self, after: bool, loss: str) -> float:
        """The objective on the samples held back, by the definitions alone."""
        weights, biases, grids = self.weights(after), self.biases(after), self.grids(after)

        def parameters(node: Node) -> tuple[Tensor, Tensor]:
            weight = weights[self.problem.layers[node.name].weight_name]
            return weight.dequantize(), biases[node.name]

        def on_grid(name: str, value: Tensor) -> Tensor:
            grid, bounds = grids[name], Operand.of(grids[name])
            codes = torch.round(value / grid.scale) + grid.zero_point
            return (codes.clamp(bounds.qmin, bounds.qmax) - grid.zero_point) * grid.scale

        held = slice(len(X) - HELD_BACK, None)
        inputs = {name: x[held] for name, x in self.problem.quantized_inputs.items()}
        results = self.problem.program.run(inputs, parameters, on_grid)
        total = 0.0
        for name, target in self.problem.targets.items():
            if loss == "kl":
                p, q = target[held].log_softmax(-1), results[name].log_softmax(-1)
                total += float((p.exp() * (p - q)).sum() / HELD_BACK)
            else:
                power = float((target - target.mean(0)).square().mean())
                total += float((results[name] - target[held]).square().mean()) / power
        return total


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Solved]:
    """Every region that a learned solver solves from now on."""
    found: list[Solved] = []
    real = Reconstruction.solve_unit

    def solve_unit(self: Reconstruction, problem: UnitProblem, rng: Generator) -> UnitSolution:
        found.append(Solved(problem, real(self, problem, rng)))
        return found[-1].solution

    monkeypatch.setattr(Reconstruction, "solve_unit", solve_unit)
    return found


@pytest.mark.parametrize("solver", LEARNED, ids=lambda s: type(s).__name__)
def test_never_worse_than_round_to_nearest_in_its_own_objective(
    solver: Reconstruction, regions: list[Solved]
) -> None:
    """No region gets worse, some better; the losses are true, and integers match.

    Those of the publications need more iterations than these to leave the nearest codes behind.
    """
    result = quantized(*NEAREST, solver)
    before, after = (
        [r.error(after, solver.training.loss) for r in regions] for after in (False, True)
    )
    assert all(b <= a * (1 + 1e-4) for a, b in zip(before, after, strict=True))
    quick = isinstance(solver, UWC | AttentionRound | NetworkTuning)
    assert sum(after) < 0.999 * sum(before) or not quick
    losses = [region.solution.losses for region in regions]
    for history, first, best in zip(losses, before, after, strict=True):
        if history:  # else nothing of the region has a rate
            assert (history[0], min(history)) == pytest.approx((first, best), rel=1e-3)
    check_integers(result)


@pytest.mark.parametrize("rate", RATES)
def test_a_rate_moves_its_parameters_and_no_others(rate: str, regions: list[Solved]) -> None:
    alone = {name: 2e-2 if name == rate else 0.0 for name in RATES}
    quantized(*NEAREST, UWC(replace(SHORT, held_back=0, **alone)))
    moved = set()
    for region in regions:
        for name, start in region.weights(after=False).items():
            weight = region.weights(after=True)[name]
            if not torch.equal(start.codes, weight.codes):
                moved.add("code_rate")
            if not torch.allclose(start.qparams.scale, weight.qparams.scale, rtol=1e-6):
                moved.add("scale_rate")
        for name, bias in region.biases(after=False).items():
            if not torch.equal(bias, region.biases(after=True)[name]):
                moved.add("bias_rate")
        for name, grid in region.grids(after=False).items():
            if not torch.equal(grid.scale, region.grids(after=True)[name].scale):
                moved.add("activation_rate")
    assert moved == {rate}


@pytest.mark.parametrize("setting", [{"mix": 0.5}, {"drop": 0.5}], ids=str)
def test_mixing_and_dropping_take_part(setting: dict) -> None:
    plain = quantized(*NEAREST, UWC(replace(SHORT, held_back=0)))
    assert not torch.equal(
        plain(X), quantized(*NEAREST, UWC(replace(SHORT, held_back=0, **setting)))(X)
    )


@pytest.mark.parametrize("judgements", [1, 3])
def test_the_best_iterate_counts_not_the_last(judgements: int, regions: list[Solved]) -> None:
    """At a rate that ruins the codes the start is best."""
    wild = replace(SHORT, code_rate=3.0, bias_rate=30.0, judgements=judgements)
    quantized(*NEAREST, UWC(wild))
    assert any(min(r.solution.losses) < r.solution.losses[-1] for r in regions)
    for region in regions:
        assert region.error(True, "mse") == pytest.approx(min(region.solution.losses), rel=1e-3)


class Averaged(nn.Module):
    """Many 2-bit copies of three features, and their means: a Basic-Unit behind a stem.

    Rounded one by one all copies err alike. Seen together, each can err its own way so that the
    mean is right.
    """

    def __init__(self, seed: int, copies: int = 16, inputs: int = 12, features: int = 3) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randn(features, inputs, generator=rng).repeat_interleave(copies, 0)
        self.stem = nn.Linear(inputs, inputs)
        self.copies = nn.Linear(inputs, copies * features)
        self.mean = nn.Linear(copies * features, features)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(inputs))
            self.copies.weight.copy_(rows + 0.05 * torch.randn(rows.shape, generator=rng))
            self.mean.weight.copy_(torch.eye(features).repeat_interleave(copies, 1) / copies)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.copies(self.stem(x)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_unit_beats_its_layers_and_both_beat_rounding_at_2_bits(seed: int) -> None:
    torch.manual_seed(seed)
    model, images = Averaged(seed).eval(), torch.randn(320, 12)
    config = fxquant.Config(names={"copies": fxquant.OpConfig(2, 8)})

    def loss(*steps: Solver) -> float:
        data = list(images.split(64))
        result = fxquant.quantize(model, data, config=config, solver=steps, progress=False)
        return error(result, model, images)

    training = Training(iterations=100, code_rate=2e-2)
    layers = loss(*NEAREST, UWC(training, Scope.LAYER))
    units = loss(*NEAREST, UWC(training))
    assert units < 0.6 * layers < 0.6 * loss(*NEAREST)


def test_same_seed_same_bytes_other_seed_other_codes() -> None:
    first, second, other = (quantized(UWC(SHORT), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first(X), second(X))
    assert not torch.equal(first(X), other(X))


@pytest.mark.parametrize("held_back", [0, 12])
def test_training_changes_codes_whether_or_not_samples_are_held_back(held_back: int) -> None:
    after = quantized(*NEAREST, UWC(replace(SHORT, held_back=held_back)))
    assert not torch.equal(quantized(*NEAREST)(X), after(X))


def test_rates_of_zero_keep_their_parameters() -> None:
    """Codes move, grids and scales do not."""
    codes_only = replace(SHORT, scale_rate=0.0, bias_rate=0.0, activation_rate=0.0)
    before, after = quantized(*NEAREST), quantized(*NEAREST, UWC(codes_only))
    grids = [
        {
            n.name: str(n.meta["quant"].qparams)
            for n in q.calibrated.graph.nodes
            if "quant" in n.meta
        }
        for q in (before, after)
    ]
    assert grids[0] == grids[1]


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"batch": 0}, {"mix": 1.5}, {"drop": -0.1}, {"code_rate": -1.0},
     {"loss": "l3"}, dict.fromkeys(RATES, 0.0)],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="rate" if len(wrong) > 1 else next(iter(wrong))):
        Training(**wrong)


def test_shared_weights_stay_shared() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    relu = nn.ReLU()
    model = nn.Sequential(conv, relu, conv, relu, conv, relu).eval()
    config = fxquant.Config(default=fxquant.OpConfig(3, 4))
    result = fxquant.quantize(model, [X], config=config, solver=UWC(SHORT), progress=False)
    codes = [b for b in result.calibrated.buffers() if b.shape == (3, 3, 3, 3)]
    assert len(codes) == 1
    check_integers(result)


def test_the_progress_bar_says_how_far_a_unit_is(capsys: pytest.CaptureFixture[str]) -> None:
    fxquant.quantize(residual(), [X], config=fxquant.W3A3, solver=NetworkTuning(SHORT))
    shown = capsys.readouterr().err
    assert "0/30" in shown and "20/30" in shown
    within = re.findall(r"([\d.]+)/7 \[\d+:\d+<\d+:\d+,[^]]*network (\d+)/30", shown)  # time left
    assert {("2.3", "10"), ("4.7", "20")} <= set(within)
    assert "| 7/7 [" in shown


class Labels(nn.Module):
    """The class of every pixel, keeping or dropping the scores."""

    def __init__(self, scores: bool) -> None:
        super().__init__()
        self.net, self.scores = residual(), scores

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        return scores if self.scores else scores.argmax(1)


def test_a_network_of_labels_learns_from_its_scores() -> None:
    scores, labels = (
        fxquant.quantize(
            Labels(kept).eval(), [X], config=fxquant.W3A3, solver=NetworkTuning(SHORT),
            progress=False,
        )
        for kept in (True, False)
    )  # fmt: skip
    assert torch.equal(labels(X), scores(X).argmax(1))
