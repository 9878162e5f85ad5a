"""The training loop and the solvers made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.errors import ConfigError
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
from tests.solvers.nets import NEAREST, X, check_integers, error, residual

RATES = ("code_rate", "scale_rate", "bias_rate", "activation_rate")
SHORT = Training(iterations=30, batch=8, held_back=12, code_rate=1.5e-2)
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


@pytest.mark.parametrize("solver", LEARNED, ids=lambda s: type(s).__name__)
def test_never_worse_than_round_to_nearest_in_its_own_objective(solver: Solver) -> None:
    """On the samples held back, for every region; and the integers still match."""
    prepared = fxquant.prepare(residual(), X[:1], fxquant.W3A3)
    fxquant.calibrate(prepared, [X], (*NEAREST, solver), progress=False)
    assert prepared.solved is not None
    losses = [history for history in prepared.solved.losses.values() if history]
    assert losses and all(min(history) <= history[0] for history in losses)
    check_integers(fxquant.convert(prepared))


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
