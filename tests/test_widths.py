"""Every width of weights and activations: codes, the integer graph, kernels."""

from __future__ import annotations

import pytest
import torch

import fxquant
import tvm_backend
from fxquant.config import Config, OpConfig
from tests.graphs import check_per_operator, signal_to_noise
from tests.test_api import X, codes, small


@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_every_weight_width(weight_bits: int) -> None:
    check_widths(weight_bits, 8)


@pytest.mark.parametrize("activation_bits", [*range(2, 8), 16])
def test_every_activation_width(activation_bits: int) -> None:
    check_widths(8, activation_bits)
    check_widths(min(activation_bits, 4), activation_bits)


@pytest.mark.slow
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_kernels_of_every_pair_of_widths_are_exact(weight_bits: int) -> None:
    for activation_bits in (*range(2, 9), 16):
        config = Config(default=OpConfig(weight_bits, activation_bits))
        solver = fxquant.solvers.RoundToNearest()
        quantized = fxquant.quantize(small(), [X], X[:1], config, solver, progress=False)
        compiled = tvm_backend.compile(quantized, threads=1)
        assert torch.equal(compiled(X[:2]), quantized(X[:2])), activation_bits


def check_widths(weight_bits: int, activation_bits: int) -> None:
    """Codes stay inside their width, and the integer graph follows the Q/DQ graph."""
    config = Config(default=OpConfig(weight_bits, activation_bits))
    quantized = fxquant.quantize(small(), [X], config=config, progress=False)
    check_per_operator(quantized, [X])
    largest = (1 << (weight_bits - 1)) - 1
    for tensor in codes(quantized):
        if tensor.dtype == torch.int8 and tensor.ndim > 1:
            assert int(tensor.abs().max()) <= largest
    for node in quantized.integer.graph.nodes:
        if "qmax" in node.kwargs and node.all_input_nodes[0].op != "placeholder":
            assert node.kwargs["qmax"] <= (1 << activation_bits) - 1


def test_more_bits_are_not_worse() -> None:
    """Error against float falls from 2 to 4 to 8 bits."""
    expected = small()(X).detach()
    noise = []
    for width in (2, 4, 8):
        config = Config(default=OpConfig(width, width))
        quantized = fxquant.quantize(small(), [X], config=config, progress=False)
        noise.append(signal_to_noise(expected, quantized.reference(X)))
    assert noise == sorted(noise) and noise[-1] > 30
