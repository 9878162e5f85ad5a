"""16-bit activations, alone and beside 8-bit ones, through calibration, Q/DQ graph and integers."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from fxquant.config import Config, OpConfig, preset
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.model import Quantized
from fxquant.numerics import reference
from fxquant.passes.integerize import integerize
from tests.graphs import node_of, quantize_model, signal_to_noise, tensors
from tests.passes.test_lowering import check_budget
from tests.wide_nets import CONFIGS, everywhere
from tests.zoo import BY_NAME


@cache
def quantized(name: str) -> Quantized:
    """A network of the list, quantized once for all tests."""
    entry, config = CONFIGS[name]
    return quantize_model(entry.make(), entry.inputs(batch=8), config)


def grid_bits(name: str) -> set[int]:
    """Widths of the values of a network."""
    nodes = quantized(name).calibrated.graph.nodes
    quants = [meta.quant(n) for n in nodes if n.op != "get_attr" and not meta.delivers_float(n)]
    return {q.spec.dtype.bits for q in quants if q is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_operators_within_one_lsb(name: str) -> None:
    check_budget(CONFIGS[name][0], quantized(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_both_widths_occur(name: str) -> None:
    """The input has 8 bits always."""
    assert 16 in grid_bits(name) and grid_bits(name) & {4, 8}


@pytest.mark.parametrize("name", [n for n in CONFIGS if "A16" in n])
def test_integers_follow_the_qdq_graph_closely(name: str) -> None:
    """At least 80 dB: 16-bit roundings differ rarely, and by one."""
    entry = CONFIGS[name][0]
    inputs = entry.inputs(batch=8)
    with torch.no_grad():
        network = quantized(name)
        pairs = zip(tensors(network.graph_module(*inputs)), tensors(network(*inputs)), strict=True)
    for simulated, integer in pairs:
        assert signal_to_noise(simulated, integer) > 80


def test_sixteen_bits_are_far_better_than_eight() -> None:
    """With 8-bit weights the rest of the error is theirs and the input's."""
    entry = BY_NAME["depthwise"]
    model, inputs = entry.make(), entry.inputs(batch=8)
    with torch.no_grad():
        expected = model(*inputs)
    noise = [
        signal_to_noise(expected, quantize_model(model, inputs, config).reference(*inputs))
        for config in (Config(), everywhere(8))
    ]
    assert noise[1] > noise[0] + 10


def test_types_of_codes_accumulators_and_parameters() -> None:
    """uint16 codes; what reads them has int64 accumulators and bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    x = torch.randn(2, 3, 9, 7)
    gm = quantize_model(model, [x], everywhere(8)).integer
    first, last = node_of(gm, "conv2d"), node_of(gm, "conv2d_accumulate")
    assert meta.dtype_of(first) == torch.uint16 and first.kwargs["width"] == 16
    _, _, bias, multiplier, _ = first.args
    assert meta.dtype_of(bias) == torch.int32  # it reads the input's 8-bit codes
    assert meta.dtype_of(multiplier) == torch.int32
    assert meta.dtype_of(last) == meta.dtype_of(last.args[2]) == torch.int64
    assert node_of(gm, "quantize").kwargs.keys() == {"scale", "zero_point", "qmin", "qmax"}


def test_large_biases_leave_the_weight_scales_alone() -> None:
    """On a 16-bit input grid a bias has more than 32 bits; the scales need no floor for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1)).eval()
    last = model[2]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.constant_(last.bias, 100.0)
    last.weight.data *= 0.1
    x = torch.randn(4, 3, 5, 5)
    wide = quantize_model(model, [x], everywhere(8))
    bias = meta.tensor_of(wide.integer, node_of(wide.integer, "conv2d_accumulate").args[2])
    assert int(bias.min()) > 1 << 31
    assert not wide.notes
    expected = model(x).detach() - 100
    assert signal_to_noise(expected, wide.reference(x) - 100) > 30


@pytest.mark.parametrize("bits", [*range(9, 16), 17, 32, 1])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=r"activation_bits(.|\n)*2\.\.8 or 16"):
        OpConfig(8, bits)
    with pytest.raises(ConfigError, match="weight_bits"):
        OpConfig(bits, 8)


def test_weights_of_sixteen_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight_bits=16"):
        OpConfig(16, 16)


def test_preset_keeps_first_and_last_activations_wide() -> None:
    assert preset(4, 16).first_last == OpConfig(8, 16)
    assert preset(4, 8).first_last == OpConfig(8, 8)
    assert preset(8, 16).first_last is None


def test_lowering_twice_is_the_same() -> None:
    wide = quantized("residual W8A16")
    x = CONFIGS["residual W8A16"][0].inputs()
    again = integerize(wide.calibrated)
    assert torch.equal(again(*x), wide.reference(*x))
    assert any(n.target is reference.conv2d for n in again.graph.nodes)
