"""Random small CNNs: the compiler keeps what they compute.

The LSB budget: every integer operator is within 1 LSB of its float function on the same operands.
Over a graph of at most six steps the differences of the Q/DQ graph and the integer graph stay
below 5 % of the largest output (measured over 340 outputs: 2 % at most, 0.8 % typically).
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor

from fxquant.config import Config
from tests.graphs import check_frontend, check_per_operator, quantize_model, tensors
from tests.random_graphs import RandomNet, low_bit_networks, mixed_networks, networks

END_TO_END = 0.05


@given(networks())
def test_graph_equals_model(case: tuple[RandomNet, Tensor]) -> None:
    model, x = case
    check_frontend(model, [x])


@given(networks())
@settings(max_examples=15)
def test_integers_follow_the_qdq_graph(case: tuple[RandomNet, Tensor]) -> None:
    model, x = case
    quantized = quantize_model(model, [x])
    check_per_operator(quantized, [x])
    with torch.no_grad():
        pairs = zip(tensors(quantized.graph_module(x)), tensors(quantized(x)), strict=True)
    for simulated, integer in pairs:
        largest = max(float(simulated.abs().max()), 1e-3)
        assert float((simulated - integer).abs().max()) <= END_TO_END * largest


@given(mixed_networks())
@settings(max_examples=10)
def test_mixed_widths_follow_the_qdq_graph(case: tuple[RandomNet, Tensor, Config]) -> None:
    model, x, config = case
    check_per_operator(quantize_model(model, [x], config), [x])


@given(low_bit_networks(steps=3))
@settings(max_examples=8)
def test_low_bits_follow_the_qdq_graph(case: tuple[RandomNet, Tensor, Config]) -> None:
    model, x, config = case
    check_per_operator(quantize_model(model, [x], config), [x])
