"""Suggestions: each rule fires on the fault it is made for, found in a real network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import fxquant
from fxquant.inspection import Layer, inspect
from fxquant.inspection.advice import (
    Measured,
    advice,
    float_remedy,
    outlier_channels,
    overall,
)
from fxquant.inspection.facts import NodeFacts, node_facts
from fxquant.inspection.histogram import Histogram
from fxquant.inspection.measure import Measurement, NoiseShares
from fxquant.inspection.similarity import Similarity
from tests import zoo
from tests.inspection.nets import quantized_net, small_net


def layers(quantized: fxquant.Quantized, model: nn.Module, x: torch.Tensor) -> Mapping[str, Layer]:
    return {layer.fact.node: layer for layer in inspect(quantized, x, model=model).layers}


@cache
def small_fact(weight_bits: int) -> NodeFacts:
    config = fxquant.preset(weight_bits, 8)
    return next(f for f in node_facts(quantized_net(config)) if f.node == "left_0")


def fact(bits: int = 8, weight_bits: int = 4) -> NodeFacts:
    return replace(small_fact(weight_bits), bits=bits)


def measured(
    shares: tuple[float, float, float],
    sqnr: float = 20.0,
    histogram: Histogram | None = None,
    channels: tuple[float, ...] = (),
) -> Measurement:
    similarity = Similarity(sqnr, 0.9)
    return Measurement("n", similarity, similarity, NoiseShares(*shares), histogram, channels)


def test_weights_dominate_in_a_network_of_two_bit_weights() -> None:
    model, x = small_net()
    layer = layers(quantized_net(fxquant.W2A8), model, x)["left_0"]
    assert layer.measured is not None and layer.measured.noise.weight > 0.9
    assert layer.suggestions[0].endswith("solver=(GPTQ(), UWC())")
    assert layer.suggestions[1].endswith('names={"left.0": OpConfig(4, 8)}')


def test_activations_dominate_in_a_network_of_two_bit_activations() -> None:
    model, x = small_net()
    config = fxquant.Config(fxquant.OpConfig(8, 3))
    layer = layers(quantized_net(config), model, x)["left_2"]
    assert layer.measured is not None and layer.measured.noise.weight < 0.1
    assert any("EasyQuant() or UWC()" in s for s in layer.suggestions)
    assert any("OpConfig(8, 8)" in s for s in layer.suggestions)


def test_noise_shares_add_up() -> None:
    model, x = small_net()
    for layer in layers(quantized_net(fxquant.W4A4), model, x).values():
        assert layer.measured is not None
        noise = layer.measured.noise
        assert noise.weight + noise.operands + noise.result == pytest.approx(1.0)


def test_outlier_channels_call_for_equalization() -> None:
    channels = (1.0,) * 15 + (20.0,)
    value = Measured(fact(), measured((0.0, 0.0, 1.0), channels=channels))
    first = advice(value, (), "RoundToNearest()")[0]
    assert "outliers in 1 of 16 channels: ActivationEqualization()" in first
    used = advice(value, (), "ActivationEqualization()")
    assert not any("outliers" in s for s in used)


def test_the_worst_operand_is_named() -> None:
    good, bad = measured((0, 0, 1), 40.0), measured((0, 0, 1), 10.0)
    operands = (Measured(fact(), good), Measured(replace(fact(4), node="bad", module="m.bad"), bad))
    first = advice(Measured(fact(), measured((0.1, 0.8, 0.1))), operands, "UWC")[0]
    assert first == 'activations dominate (80%, bad): names={"m.bad": OpConfig(4, 8)}'


def test_clipping_and_stretched_grids_are_seen() -> None:
    clipping = Histogram((0, 5, 5, 1), (0, 5, 5, 0), (0.0, 1.0))
    stretched = Histogram((0, 1000, *[0] * 14, 1, 0), (0,) * 18, (0.0, 1.0))
    for histogram, phrase in ((clipping, "9.1% of left_0 clipped"), (stretched, "Percentile()")):
        value = Measured(fact(), measured((0.0, 0.0, 1.0), histogram=histogram))
        assert phrase in advice(value, (), "UWC")[0]


def test_nothing_is_said_of_good_or_float_operators() -> None:
    assert advice(Measured(fact(), measured((1, 0, 0), 31.0)), (), "") == ()
    floating = replace(fact(), float_reason="add has no integer form")
    assert advice(Measured(floating, measured((1, 0, 0))), (), "") == ()


def test_an_eight_bit_layer_ends_in_float_when_all_else_was_tried() -> None:
    value = Measured(fact(weight_bits=8), measured((1, 0, 0)))
    tried = "(CrossLayerEqualization(), GPTQ(), UWC())"
    assert advice(value, (), tried) == (
        'weights dominate (100%): leave it in float, names={"left.0": None}',
    )


def test_small_errors_that_add_up_are_seen() -> None:
    def errors(isolated: float, cumulative: float) -> list[Measurement]:
        found = measured((0.4, 0.3, 0.3))
        similar = (Similarity(cumulative, 0.9), Similarity(isolated, 0.9))
        return [replace(found, cumulative=similar[0], isolated=similar[1])] * 50

    assert "50 small errors add up: solver=" in overall(errors(35, 12), "RoundToNearest()")
    assert "16-bit activations" in overall(errors(35, 12), "(GPTQ(), UWC())")
    assert overall(errors(35, 25), "") == overall(errors(20, 12), "") == overall([], "") == ""


def test_outlier_channels_are_few() -> None:
    assert outlier_channels((1.0, 1.0, 1.0, 1.0, 9.0)) == 1
    assert outlier_channels((1.0, 1.0, 9.0, 9.0, 9.0)) == 0
    assert outlier_channels((0.0, 0.0, 0.0, 1.0)) == 0
    assert outlier_channels(()) == 0


def test_every_reason_to_stay_in_float_has_a_remedy() -> None:
    entry = zoo.BY_NAME["softmax_island"]
    quantized = fxquant.quantize(entry.make(), [entry.inputs()[0]], progress=False)
    islands = [f for f in node_facts(quantized) if f.island]
    assert islands and all(float_remedy(f) for f in islands)
    reasons = {
        "left in float by the configuration (names['a'])": "remove the rule",
        "reshape moves values that are in float": "comes along",
        "add works on constants": "outside of forward",
        "mul works on integers of the model": "outside of forward",
    }
    for reason, phrase in reasons.items():
        assert phrase in float_remedy(replace(fact(), float_reason=reason))
    assert float_remedy(replace(fact(), float_reason="moves the float result of head")) == ""
    assert float_remedy(fact()) == ""
