"""Residual sums on finer grids: which values get one, and what layers read instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxquant
from fxquant.config import Config, OpConfig, preset
from fxquant.errors import ConfigError
from fxquant.inspection import layer_errors
from fxquant.ir import meta
from fxquant.ir.floats import FloatNetwork
from fxquant.numerics.ranges import Percentile
from fxquant.onnx import qdq_model
from fxquant.ops import Operand
from fxquant.passes.annotate import annotate, range_estimators
from fxquant.recipes import allocate_bits
from fxquant.solvers import ActivationEqualization, RoundToNearest
from tests.graphs import check_per_operator, fused, ops_of, quantize_model, signal_to_noise

NARROW = Config(default=OpConfig(4, 4), residual_bits=8)
IMAGES = torch.randn(8, 8, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Six layers of 8 channels, put together by `body`."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in "abcdef":
            self.add_module(name, nn.Conv2d(8, 8, 3, padding=1))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def chain(net: Net, x: Tensor) -> Tensor:
    """A block whose sum the next one starts from, and one whose sum only a layer reads."""
    x = net.a(x)
    x = F.relu(net.c(F.relu(net.b(x))) + x)
    x = F.relu(net.e(F.relu(net.d(x))) + x)
    return net.f(x)


def annotated(body: Callable[..., Tensor], config: Config = NARROW) -> GraphModule:
    return annotate(fused(Net(body).eval(), torch.randn(1, 8, 6, 6)), config)


def bits(gm: GraphModule) -> dict[str, int]:
    """Bits of every value."""
    grids = ((n.name, meta.quant(n)) for n in gm.graph.nodes if n.op != "get_attr")
    return {name: grid.spec.dtype.bits for name, grid in grids if grid is not None}


def read_by_layers(gm: GraphModule) -> list[Node]:
    return [n.args[0] for n in gm.graph.nodes if n.name in "abcdef" and len(n.name) == 1]


def test_sums_are_wide_and_layers_read_narrow_copies() -> None:
    """Only the last sum is narrow itself: a layer and nothing else reads it."""
    gm = annotated(chain)
    assert bits(gm) == {
        "x": 8, "a": 8, "a_requantize": 4, "b": 4, "c": 8, "c_requantize": 4, "d": 4, "e": 4
    }  # fmt: skip
    assert [n.name for n in read_by_layers(gm)] == [
        "x", "a_requantize", "b", "c_requantize", "d", "e"
    ]  # fmt: skip
    residuals = {n.name: n.args[3].name for n in gm.graph.nodes if len(n.args) > 3}
    assert residuals == {"c": "a", "e": "c"}


def test_none_keeps_one_grid_for_all_readers() -> None:
    gm = annotated(chain, Config(default=OpConfig(4, 4)))
    assert "requantize" not in ops_of(gm)
    assert set(bits(gm).values()) == {4, 8}  # 8 of the input


@pytest.mark.parametrize("wide", [8, 16])
def test_rules_choose_what_layers_read(wide: int) -> None:
    """A rule for an operator is about the copy; the value added keeps `residual_bits`."""
    config = Config(default=OpConfig(4, 4), names={"a": OpConfig(4, 6)}, residual_bits=wide)
    found = bits(annotated(chain, config))
    assert (found["a"], found["a_requantize"], found["c"]) == (wide, 6, wide)


def test_copies_have_the_range_of_their_value() -> None:
    """Also where a rule names the node, and where a pooling lies between."""

    def body(net: Net, x: Tensor) -> Tensor:
        y = F.max_pool2d(net.a(x) + net.b(x), 2)
        return net.d(net.c(y) + y)

    added = next(n.name for n in annotated(body).graph.nodes if len(n.args) > 3)
    chosen = OpConfig(4, 4, Percentile(99.0))
    config = NARROW.with_rules(names={added: chosen})
    gm = annotated(body, config)
    estimators = range_estimators(gm, config)
    assert estimators["max_pool2d_requantize"] == estimators[added] == chosen.activation_range


def test_rule_with_as_many_bits_needs_no_copy() -> None:
    found = bits(annotated(chain, NARROW.with_rules(names={"a": OpConfig(4, 8)})))
    assert found["a"] == 8 and "a_requantize" not in found


def test_one_copy_for_all_layers_that_read_a_value() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.e(net.d(net.b(x) + net.c(x) + x))

    gm = annotated(body)
    assert ops_of(gm).count("requantize") == 1
    assert [n.name for n in read_by_layers(gm)][1:3] == ["a_requantize"] * 2


def test_a_layer_that_adds_what_it_reads() -> None:
    gm = annotated(lambda net, x: net.c(F.max_pool2d(net.b(y := net.a(x)) + y, 2)))
    layer = next(n for n in gm.graph.nodes if n.name == "b")
    assert (layer.args[0].name, layer.args[3].name) == ("a_requantize", "a")


def test_copies_of_moved_values() -> None:
    """Pooling and padding move codes: the copy is made where a layer reads their result."""

    def body(net: Net, x: Tensor) -> Tensor:
        y = F.max_pool2d(net.a(x), 2)
        return net.d(net.c(net.b(y)) + y)

    gm = annotated(body)
    found = bits(gm)
    assert found["a"] == found["max_pool2d"] == 8
    assert found["max_pool2d_requantize"] == 4
    assert "a_requantize" not in found


def test_sum_that_only_layers_read_behind_a_pooling_is_narrow() -> None:
    gm = annotated(lambda net, x: net.c(F.max_pool2d(net.b(y := net.a(x)) + y, 2)))
    assert bits(gm)["b"] == bits(gm)["max_pool2d"] == 4


def test_other_operators_read_the_wide_sum() -> None:
    """The average in front of a classifier."""
    gm = annotated(lambda net, x: net.c(F.adaptive_avg_pool2d(net.b(y := net.a(x)) + y, 1)))
    assert bits(gm)["b"] == 8
    assert ops_of(gm).count("requantize") == 1  # of a's result


def test_float_operators_are_left_alone() -> None:
    gm = annotated(chain, NARROW.with_rules(names={"a": None}))
    assert "a_requantize" not in bits(gm)  # its result is made in float, with one grid
    assert bits(gm)["c"] == 8


def test_presets() -> None:
    assert all(preset(w, a).residual_bits == 8 for w in (2, 4, 8) for a in (3, 4, 7))
    assert preset(4, 8).residual_bits is preset(8, 16).residual_bits is None


def test_bits_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"residual_bits=9(.|\n)*2\.\.8 or 16"):
        Config(residual_bits=9)


@pytest.fixture(scope="module")
def quantized() -> fxquant.Quantized:
    return quantize_model(Net(chain).eval(), [IMAGES], NARROW, solver=RoundToNearest())


def test_copies_are_the_nearest_codes(quantized: fxquant.Quantized) -> None:
    """Every code of the wide grid within the error of the 16-bit requantization."""
    check_per_operator(quantized, [IMAGES])
    node = next(n for n in quantized.calibrated.graph.nodes if n.name == "a_requantize")
    wide, narrow = (Operand.of(meta.qparams(n)) for n in (node.args[0], node))
    call = next(n for n in quantized.integer.graph.nodes if n.name == "a_requantize")
    codes = torch.arange(256, dtype=torch.uint8)
    real = (codes.double() - wide.zero_point) * wide.scale / narrow.scale + narrow.zero_point
    result = call.target(codes, **call.kwargs)
    assert int(result.min()) == narrow.qmin and int(result.max()) == narrow.qmax
    assert float((real.clamp(narrow.qmin, narrow.qmax) - result).abs().max()) < 0.5 + 2**-5


def test_saved_and_loaded(quantized: fxquant.Quantized, tmp_path: Path) -> None:
    quantized.save(tmp_path / "net.fxq")
    loaded = fxquant.load(tmp_path / "net.fxq")
    assert "requantize" in ops_of(loaded.calibrated)
    assert torch.equal(loaded.reference(IMAGES), quantized.reference(IMAGES))


def test_exported_to_onnx(quantized: fxquant.Quantized) -> None:
    """The copy is a QuantizeLinear of its own behind an Identity."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(qdq_model(quantized))
    (result,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:1].numpy()})
    with torch.no_grad():
        expected = quantized.graph_module(IMAGES[:1])
    assert signal_to_noise(expected, torch.from_numpy(result)) > 20


def test_errors_of_copies_are_measured(quantized: fxquant.Quantized) -> None:
    """The float model has no such node: the copy of the value is added to it."""
    errors = {e.node: e.isolated for e in layer_errors(quantized, IMAGES, Net(chain).eval())}
    assert 15 < errors["a_requantize"].sqnr < 22  # of a bell curve on 4 bits


def test_equalization_scales_sum_and_copies_alike() -> None:
    """A copy belongs to the channel classes of its value, so that the network stays the same."""
    prepared = fxquant.prepare(Net(chain).eval(), IMAGES[:1], NARROW)
    expected = FloatNetwork(prepared.graph).run(IMAGES)
    fxquant.calibrate(prepared, [IMAGES], (ActivationEqualization(1.0), RoundToNearest()),
                      progress=False)  # fmt: skip
    nodes = {n.name: n for n in prepared.graph.graph.nodes}
    wide, narrow = (meta.channel_factors(nodes[n]) for n in ("a", "a_requantize"))
    assert wide is not None and narrow is not None
    assert torch.equal(wide, narrow) and float(wide.min()) < 1
    result = fxquant.convert(prepared).graph_module(IMAGES)
    assert signal_to_noise(expected, result) > 5


def test_chosen_widths_keep_the_copies() -> None:
    """Bits of a mixed-precision allocation go to the copies; the sums stay wide."""
    model = Net(chain).eval()
    config = allocate_bits(model, IMAGES[:1], 4.0, config=preset(4, 4), progress=False).config
    found = bits(annotate(fused(model, IMAGES[:1]), config))
    assert (found["c"], found["c_requantize"]) == (8, 4)


def test_chosen_widths_keep_copies_of_moved_values() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        y = F.max_pool2d(net.b(net.a(x)), 2)
        return net.e(net.d(net.c(y) + y))

    model = Net(body).eval()
    config = allocate_bits(model, IMAGES[:1], 4.0, config=preset(4, 4), progress=False).config
    found = bits(annotate(fused(model, IMAGES[:1]), config))
    assert (found["max_pool2d"], found["max_pool2d_requantize"]) == (8, 4)
