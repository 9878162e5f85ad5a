"""insert_qdq and integerize: op for op the same network, once in float and once in integers."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.config import Config, OpConfig, preset
from fxquant.ir import meta
from fxquant.model import Quantized
from fxquant.numerics import reference
from fxquant.ops import qdq
from tests.graphs import (
    check_per_operator,
    node_of,
    ops_of,
    quantize_model,
    signal_to_noise,
    tensors,
)
from tests.tolerance import assert_close
from tests.zoo import BY_NAME, ZOO, ZooModel

X = torch.randn(6, 3, 9, 7, generator=torch.Generator().manual_seed(3))


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()).eval()


def test_qdq_graph_of_two_layers() -> None:
    quantized = quantize_model(conv_net(), [X])
    assert ops_of(quantized.graph_module) == [
        "dequantize_weight", "quantize", "dequantize", "dequantize_weight", "conv2d", "quantize",
        "dequantize", "conv2d",
    ]  # fmt: skip


def test_integer_graph_of_two_layers() -> None:
    quantized = quantize_model(conv_net(), [X])
    gm = quantized.integer
    targets = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    assert targets == [
        reference.quantize,
        reference.conv2d,
        reference.conv2d_accumulate,
        reference.dequantize_accumulator,
    ]
    dtypes = {meta.tensor_of(gm, n).dtype for n in gm.graph.nodes if n.op == "get_attr"}
    assert dtypes == {torch.int8, torch.int32, torch.int16, torch.float32}
    conv = node_of(gm, "conv2d")
    assert {"input_zero_point", "output_zero_point", "qmin", "qmax"} <= set(conv.kwargs)


def check_budget(entry: ZooModel, quantized: Quantized) -> None:
    """Every operator of the integer graph within 1 LSB of its float function."""
    assert check_per_operator(quantized, entry.inputs(batch=4)) > 0
    fresh = tuple(3 * x for x in entry.inputs(seed=9, batch=2))  # beyond the calibrated range
    check_per_operator(quantized, fresh)


@cache
def w8a8(entry: ZooModel) -> Quantized:
    """A zoo model quantized once for all tests."""
    return quantize_model(entry.make(), entry.inputs(batch=8))


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_operators_within_one_lsb(entry: ZooModel) -> None:
    check_budget(entry, w8a8(entry))


@pytest.mark.parametrize(
    ("name", "bits"),
    [("residual", 2), ("branches", 3), ("inverted_bottleneck", 4), ("residual", 5),
     ("option_a", 6), ("branches", 7)],
)  # fmt: skip
def test_operators_within_one_lsb_at_low_bits(name: str, bits: int) -> None:
    entry = BY_NAME[name]
    config = Config(default=OpConfig(bits, bits))
    check_budget(entry, quantize_model(entry.make(), entry.inputs(batch=4), config))


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_whole_network_close_to_float_and_qdq(entry: ZooModel) -> None:
    """W8A8 keeps 30 dB, and integers against the Q/DQ graph 35 dB, on untrained tiny nets."""
    model, inputs, quantized = entry.make(), entry.inputs(batch=8), w8a8(entry)
    with torch.no_grad():
        rows = zip(tensors(model(*inputs)), tensors(quantized.graph_module(*inputs)),
                   tensors(quantized(*inputs)), strict=True)  # fmt: skip
    for expected, simulated, integer in rows:
        assert simulated.shape == integer.shape == expected.shape
        assert signal_to_noise(expected, simulated) > 30
        assert signal_to_noise(simulated, integer) > 35


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_integer_graph_computes_with_integers_only(entry: ZooModel) -> None:
    """Outside of the listed islands, floats exist only at the network's edges."""
    quantized = w8a8(entry)
    islands = {i.node for i in quantized.float_islands}
    edges = {reference.quantize, reference.dequantize, reference.dequantize_accumulator}
    for node in quantized.integer.graph.nodes:
        if node.op != "call_function" or node.target in edges or node.name in islands:
            continue
        if meta.float_reason(node) is None:
            producers = {n.name for n in node.all_input_nodes if meta.dtype_of(n).is_floating_point}
            assert not producers, f"{node.name} computes in float from {producers}"


def test_lowering_leaves_the_calibrated_graph_alone() -> None:
    quantized = quantize_model(BY_NAME["residual"].make(), [X])

    def text(gm: GraphModule) -> list:
        return [(n.name, n.args, dict(n.kwargs), sorted(n.meta)) for n in gm.graph.nodes]

    before = text(quantized.calibrated)
    assert quantized.graph_module is not None and quantized.integer is not None
    assert text(quantized.calibrated) == before


def test_values_moved_by_shared_grid_operators_are_not_quantized_again() -> None:
    quantized = quantize_model(BY_NAME["option_a"].make(), [X])
    gm = quantized.graph_module
    slices = [n for n in gm.graph.nodes if getattr(n.target, "__name__", "") == "slice_axis"]
    assert slices and all(u.target is not qdq.quantize for n in slices for u in n.users)


def test_float_island_between_integer_layers() -> None:
    """The island reads dequantized values and its result is quantized for the integer reader."""
    quantized = quantize_model(BY_NAME["softmax_island"].make(), [X])
    softmax = node_of(quantized.integer, "softmax")
    assert softmax.all_input_nodes[0].target is reference.dequantize
    assert [u.target for u in softmax.users] == [reference.quantize]


def test_layer_left_in_float_reads_and_feeds_integers() -> None:
    config = Config(names={"2": None})
    quantized = quantize_model(nn.Sequential(*conv_net(), nn.Conv2d(5, 2, 1)).eval(), [X], config)
    assert [i.module for i in quantized.float_islands] == ["2"]
    check_per_operator(quantized, [X])
    assert signal_to_noise(quantized.graph_module(X), quantized(X)) > 40


def test_shared_weight_used_in_integers_and_in_float() -> None:
    """A weight two calls share stays readable for the call that stays in float."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    quantized = quantize_model(model, [X], Config(names={"_0_1": None}))
    assert len(quantized.float_islands) == 1
    with torch.no_grad():
        assert signal_to_noise(model(X), quantized.reference(X)) > 30


def test_outputs_that_are_inputs_inner_values_or_repeated() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple:
            y = F.relu(self.a(x))
            z = self.b(y)
            return x, y, [z, z], {"flat": z.flatten(1)}

    torch.manual_seed(0)
    model = Net().eval()
    quantized = quantize_model(model, [X])
    out = quantized.reference(X)
    assert torch.equal(out[0], X) and torch.equal(out[2][0], out[2][1])
    assert torch.equal(out[3]["flat"], out[2][0].flatten(1))
    for expected, actual in zip(tensors(model(X)), tensors(out), strict=True):
        assert_close(actual, expected.detach(), 0.03)


def test_straight_through_gradients_reach_the_input() -> None:
    quantized = quantize_model(conv_net(), [X])
    x = X.clone().requires_grad_(True)
    quantized.graph_module(x).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


def test_integer_graph_is_the_same_for_any_batch() -> None:
    quantized = quantize_model(BY_NAME["inverted_bottleneck"].make(), [X], preset(4, 8))
    whole = quantized.reference(X)
    single = torch.cat([quantized.reference(x[None]) for x in X])
    assert torch.equal(whole, single)
