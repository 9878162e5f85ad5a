"""Which recipe a configuration gets."""

from __future__ import annotations

import pytest

import fxquant
from fxquant.config import Config, OpConfig
from fxquant.recipes.defaults import default_steps, narrowest
from fxquant.solvers import GPTQ, UWC, ActivationEqualization, NetworkTuning


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (fxquant.W8A8, (8, 8)),
        (fxquant.W4A8, (4, 8)),
        (fxquant.W2A4, (2, 4)),
        (Config(default=None), (8, 8)),
        (Config(names={"conv": OpConfig(3, 8)}), (3, 8)),
        (Config(types={"linear": None}, patterns={".*": OpConfig(8, 5)}), (8, 5)),
    ],
    ids=str,
)
def test_the_narrowest_rule_of_each_kind_counts(config: Config, bits: tuple[int, int]) -> None:
    assert narrowest(config) == bits


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (fxquant.W8A8, (ActivationEqualization, GPTQ)),
        (fxquant.W6A6, (ActivationEqualization, GPTQ)),
        (Config(OpConfig(6, 8)), (ActivationEqualization, GPTQ)),
        (fxquant.W4A4, (ActivationEqualization, GPTQ, UWC, NetworkTuning)),
        (fxquant.W3A3, (ActivationEqualization, GPTQ, UWC, NetworkTuning)),
        (fxquant.W4A8, (GPTQ,)),
        (Config(OpConfig(5, 16)), (GPTQ,)),
        (fxquant.W3A8, (GPTQ, UWC, NetworkTuning)),
        (fxquant.W2A4, (GPTQ, UWC, NetworkTuning)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else str(value),
)
def test_what_makes_the_error_decides_on_the_recipe(
    config: Config, expected: tuple[type, ...]
) -> None:
    assert tuple(type(step) for step in default_steps(config)) == expected
