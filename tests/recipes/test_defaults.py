"""Which recipe a configuration gets."""

from __future__ import annotations

import pytest

import fxquant
from fxquant.config import Config, OpConfig
from fxquant.recipes.defaults import default_steps, narrowest
from fxquant.solvers import UWC, ActivationEqualization


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (fxquant.W8A8, 8),
        (fxquant.W4A8, 4),
        (fxquant.W2A4, 2),
        (Config(default=None), 8),
        (Config(names={"conv": OpConfig(3, 8)}), 3),
        (Config(types={"linear": None}, patterns={".*": OpConfig(8, 5)}), 5),
    ],
    ids=str,
)
def test_the_narrowest_rule_decides(config: Config, bits: int) -> None:
    assert narrowest(config) == bits
    learned = any(isinstance(step, UWC) for step in default_steps(config))
    assert learned == (bits < 6)
    assert isinstance(default_steps(config)[0], ActivationEqualization) == (bits >= 6)
