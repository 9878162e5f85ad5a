"""Which recipe a configuration gets."""

from __future__ import annotations

import pytest
from torch import nn
from torch.fx import Graph, GraphModule

import fxquant
from fxquant.config import Config, OpConfig
from fxquant.recipes.defaults import default_steps, narrowest, pixels_of
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


SMALL, LARGE = 32 * 32, 224 * 224


@pytest.mark.parametrize(
    ("config", "pixels", "expected"),
    [
        (fxquant.W8A8, LARGE, (ActivationEqualization, GPTQ)),
        (fxquant.W6A6, SMALL, (ActivationEqualization, GPTQ)),
        (Config(OpConfig(6, 8)), SMALL, (ActivationEqualization, GPTQ)),
        (fxquant.W4A4, LARGE, (ActivationEqualization, GPTQ, UWC)),
        (fxquant.W4A4, SMALL, (ActivationEqualization, GPTQ, UWC, NetworkTuning)),
        (fxquant.W3A3, SMALL, (ActivationEqualization, GPTQ, UWC, NetworkTuning)),
        (Config(OpConfig(8, 4)), LARGE, (ActivationEqualization, GPTQ, UWC)),
        (fxquant.W4A8, SMALL, (GPTQ,)),
        (Config(OpConfig(5, 16)), LARGE, (GPTQ,)),
        (fxquant.W3A8, LARGE, (GPTQ, UWC)),
        (fxquant.W2A4, SMALL, (GPTQ, UWC, NetworkTuning)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else str(value),
)
def test_what_makes_the_error_decides_on_the_recipe(
    config: Config, pixels: int, expected: tuple[type, ...]
) -> None:
    assert tuple(type(step) for step in default_steps(config, pixels)) == expected


@pytest.mark.parametrize(("shapes", "pixels"), [
    ([(1, 3, 20, 30)], 600), ([(1, 3, 8, 8), (1, 5, 9, 9)], 81), ([(4, 7)], 1), ([(2, 3, 50)], 50),
])  # fmt: skip
def test_the_largest_input_counts(shapes: list[tuple[int, ...]], pixels: int) -> None:
    graph = Graph()
    for number, shape in enumerate(shapes):
        graph.placeholder(f"x{number}").meta["shape"] = shape
    graph.output(None)
    assert pixels_of(GraphModule(nn.Module(), graph)) == pixels
