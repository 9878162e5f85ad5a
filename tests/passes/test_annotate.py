"""Which operator is quantized how: precedence of rules, shared grids, what stays in float."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import fxquant
from fxquant.config import Config, OpConfig, preset
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.numerics.ranges import MinMax, Percentile
from fxquant.passes.annotate import annotate, range_estimators
from fxquant.recipes import allocate_bits
from tests.graphs import fused, node_of, ops_of
from tests.zoo import BY_NAME


def annotated(name: str, config: Config) -> GraphModule:
    entry = BY_NAME[name]
    return annotate(fused(entry.make(), *entry.inputs()), config)


def bits(gm: GraphModule, node: str) -> tuple[int | None, int | None]:
    """Weight bits and activation bits of a node."""
    found = next(n for n in gm.graph.nodes if n.name == node)
    weight = meta.quant(found.args[1]) if len(found.args) > 1 else None
    value = meta.quant(found)
    return (
        None if weight is None else weight.spec.dtype.bits,
        None if value is None else value.spec.dtype.bits,
    )


def test_default_reaches_every_operator() -> None:
    gm = annotated("residual", Config(default=OpConfig(5, 6)))
    assert bits(gm, "stem_0") == (5, 6)
    assert bits(gm, "x") == (None, 8)  # inputs have 8 bits
    assert bits(gm, "head_fc") == (5, None)  # delivers floats


def test_precedence_default_type_pattern_name() -> None:
    """Each stronger kind of rule overrides the weaker ones, whatever their order."""
    layers = {"default": OpConfig(8, 8)}
    config = Config(**layers)
    assert bits(annotated("residual", config), "a_0") == (8, 8)
    config = config.with_rules(types={nn.Conv2d: OpConfig(7, 7)})
    assert bits(annotated("residual", config), "a_0") == (7, 7)
    config = config.with_rules(patterns={r"a\..*": OpConfig(6, 6)})
    assert bits(annotated("residual", config), "a_0") == (6, 6)
    assert bits(annotated("residual", config), "b_0") == (7, 7)
    config = config.with_rules(names={"a.0": OpConfig(5, 5)})
    assert bits(annotated("residual", config), "a_0") == (5, 5)
    assert bits(annotated("residual", config), "stem_0") == (7, 7)
    assert bits(annotated("residual", config), "head_fc")[0] == 8


@pytest.mark.parametrize(
    "rule",
    [
        {"types": {"conv2d": OpConfig(4, 8)}},
        {"types": {nn.Conv2d: OpConfig(4, 8)}},
        {"types": {nn.BatchNorm2d: OpConfig(4, 8)}},  # fused into the conv
        {"patterns": {r"a\.0": OpConfig(4, 8)}},
        {"patterns": {r"a\.1": OpConfig(4, 8)}},
        {"names": {"a.0": OpConfig(4, 8)}},
        {"names": {"a_0": OpConfig(4, 8)}},  # node name
    ],
    ids=str,
)
def test_ways_to_name_an_operator(rule: dict) -> None:
    assert bits(annotated("residual", Config(**rule)), "a_0") == (4, 8)


@pytest.mark.parametrize(
    "rule",
    [
        {"types": {nn.Conv3d: OpConfig(4, 8)}},
        {"types": {"conv3d": None}},
        {"patterns": {"a": OpConfig(4, 8)}},  # must match the whole path
        {"names": {"layer9": None}},
    ],
    ids=str,
)
def test_rule_that_matches_nothing_is_an_error(rule: dict) -> None:
    with pytest.raises(ConfigError, match=r"matches nothing(.|\n)*known module paths"):
        annotated("residual", Config(**rule))


@pytest.mark.parametrize(
    ("name", "pattern"), [("block", r"block\..*"), ("block.0", r"block\.0\..*")], ids=str
)
def test_a_container_is_named_by_a_pattern(name: str, pattern: str) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    model = nn.Sequential(OrderedDict(block=nn.Sequential(inner, nn.Conv2d(4, 2, 1)))).eval()
    with pytest.raises(
        ConfigError, match=r"matches nothing(.|\n)*patterns={r\"" + re.escape(pattern)
    ):
        annotate(fused(model, torch.zeros(1, 3, 4, 4)), Config(names={name: None}))


class Scaled(nn.Conv2d):
    """Is traced through, unlike torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


class Finer(Scaled):
    """A class further."""


@pytest.mark.parametrize(
    ("types", "widths"),
    [
        ({nn.Conv2d: OpConfig(4)}, (4, 4, 4)),
        ({Scaled: OpConfig(4)}, (8, 4, 4)),
        ({Scaled: OpConfig(5), nn.Conv2d: OpConfig(4)}, (4, 5, 5)),
        ({nn.Conv2d: OpConfig(4), Finer: OpConfig(6), Scaled: OpConfig(5)}, (4, 5, 6)),
        ({nn.Module: None}, (None, None, None)),
    ],
    ids=str,
)
def test_a_rule_for_a_class_holds_for_subclasses(types: dict, widths: tuple) -> None:
    """The nearest class wins, whatever the order of the rules."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Scaled(3, 3, 1), Finer(3, 3, 1)).eval()
    gm = annotate(fused(model, torch.zeros(1, 3, 4, 4)), Config(types=types))
    layers = [n.name for n in gm.graph.nodes if meta.is_weighted(n)]
    assert tuple(bits(gm, name)[0] for name in layers) == widths


def test_none_leaves_in_float() -> None:
    gm = annotated("residual", Config(names={"a.0": None}))
    reason = meta.float_reason(node_of(gm, "conv2d", 1))
    assert reason is not None and "names['a.0']" in reason
    assert meta.float_reason(node_of(gm, "conv2d", 2)) is None
    # its result is read by an integer layer, so it still gets a grid
    assert bits(gm, "a_0") == (None, 8)


def test_default_none_quantizes_only_what_is_named() -> None:
    gm = annotated("residual", Config(default=None, names={"b.0": OpConfig(8, 8)}))
    quantized = [n.name for n in gm.graph.nodes if n.op == "call_function"
                 and meta.float_reason(n) is None]  # fmt: skip
    assert quantized == ["b_0"]


@pytest.mark.parametrize("low", [preset(4, 4), preset(2, 4), preset(3, 3), preset(4, 8)])
def test_first_and_last_layer_stay_at_8_bits(low: Config) -> None:
    assert low.default is not None
    gm = annotated("residual", low)
    inner = (low.default.weight_bits, low.default.activation_bits)
    assert bits(gm, "stem_0") == (8, 8)
    assert bits(gm, "b_0") == inner
    assert bits(gm, "head_fc")[0] == 8
    reads = node_of(gm, "linear").args[0]
    assert meta.quant(reads).spec.dtype.bits == 8


class SharedEnds(nn.Module):
    """A siamese encoder, and a head shared by the levels of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        left, right = F.relu(self.encoder(x)), F.relu(self.encoder(x.flip(3)))
        level = F.relu(self.a(left)) * F.relu(self.b(right))
        return self.head(level), self.head(F.relu(self.b(level)))


def test_layers_that_share_the_first_or_last_weight_share_its_width() -> None:
    x = torch.zeros(1, 3, 4, 4)
    gm = annotate(fused(SharedEnds().eval(), x), preset(4, 4))
    found = [bits(gm, n.name) for n in gm.graph.nodes if meta.is_layer(n)]
    # the products of the pyramid, too, have 8 bits: the head reads them
    assert found == [(8, 8), (8, 8), (4, 4), (4, 4), (8, None), (4, 8), (8, None)]
    assert meta.quant(node_of(gm, "mul")).spec.dtype.bits == 8
    allocation = allocate_bits(SharedEnds().eval(), x, 3.0, progress=False)
    assert allocation.bits["encoder"] == allocation.bits["head"] == 8
    fxquant.prepare(SharedEnds().eval(), x, allocation.config)


def test_user_rule_is_stronger_than_first_last() -> None:
    gm = annotated("residual", preset(4, 8).with_rules(names={"stem.0": OpConfig(3, 5)}))
    assert bits(gm, "stem_0") == (3, 5)
    gm = annotated("residual", preset(4, 4).with_rules(names={"stem.0": OpConfig(3, 5)}))
    assert bits(gm, "stem_0")[0] == 3
    assert bits(gm, "stem_0_requantize")[1] == 5  # the value itself is added, too


def test_8_bit_preset_has_no_override() -> None:
    assert preset(8, 8).first_last is None


def test_moving_operators_share_the_grid_of_their_operand() -> None:
    gm = annotated("option_a", fxquant.W4A4)
    for name in ("slice_axis", "pad"):
        node = node_of(gm, name)
        own, shared = meta.quant(node), meta.quant(node.args[0])
        assert own is not None and shared is not None
        assert own.spec == shared.spec and own.origin.startswith("shared with")


@pytest.mark.parametrize(
    ("name", "node"), [("residual", "linear"), ("mlp", "linear"), ("decoder", "conv2d")]
)
def test_last_layer_delivers_floats(name: str, node: str) -> None:
    gm = annotated(name, fxquant.W8A8)
    last = [n for n in gm.graph.nodes if getattr(n.target, "__name__", "") == node][-1]
    assert meta.delivers_float(last) and meta.quant(last) is None


def test_what_moves_a_float_result_moves_floats() -> None:
    """A flatten or max pool behind the last layer costs no rounding."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Flatten()).eval()
    gm = annotate(fused(model, torch.zeros(1, 3, 4, 4)), fxquant.W8A8)
    assert meta.delivers_float(node_of(gm, "conv2d"))
    for name in ("max_pool2d", "reshape"):
        assert meta.float_reason(node_of(gm, name)).startswith("moves the float result")


def test_a_layer_read_by_integers_too_has_codes() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.a(x)
            return x, self.b(x)

    gm = annotate(fused(Both().eval(), torch.zeros(1, 3, 4, 4)), fxquant.W8A8)
    assert not meta.delivers_float(node_of(gm, "conv2d", 0))
    assert meta.delivers_float(node_of(gm, "conv2d", 1))


def test_float_island_has_its_reason_and_feeds_a_grid() -> None:
    gm = annotated("softmax_island", fxquant.W8A8)
    softmax = node_of(gm, "softmax")
    assert meta.float_reason(softmax) == "softmax has no integer form"
    assert meta.quant(softmax) is not None  # read by an integer mul
    assert ops_of(gm).count("mul") == 1


def test_moves_of_float_values_stay_in_float() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(torch.softmax(x, 1), 2)

    gm = annotate(fused(Net(), torch.zeros(1, 3, 4, 4)), fxquant.W8A8)
    assert "moves values that are in float" in meta.float_reason(node_of(gm, "max_pool2d"))


def test_shared_weight_needs_one_width() -> None:
    entry = BY_NAME["shared_module"]
    gm = fused(entry.make(), *entry.inputs())
    second = [n.name for n in gm.graph.nodes if n.op == "call_function"][2]
    with pytest.raises(ConfigError, match="shared by layers with different weight_bits"):
        annotate(gm, Config(names={second: OpConfig(4, 8)}))


def test_range_estimators_follow_the_rules() -> None:
    config = Config(
        default=OpConfig(activation_range=MinMax()),
        names={"a.0": OpConfig(activation_range=Percentile(99.0))},
        input_range=Percentile(98.0),
    )
    estimators = range_estimators(annotated("residual", config), config)
    assert estimators["x"] == Percentile(98.0)
    assert estimators["a_0"] == Percentile(99.0)
    assert estimators["stem_0"] == MinMax()


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f in ("weight_bits", "activation_bits") for v in (1, 0, 9, 17, -4, 4.0, "4")]
    + [("weight_bits", 16)],
)
def test_config_refuses_widths(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        OpConfig(**{field: value})


def test_config_refuses_a_broken_pattern() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        Config(patterns={"layer[": None})


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"default": 8}, "Config.default"),
        ({"first_last": 8}, "Config.first_last"),
        ({"types": [nn.Conv2d]}, "Config.types"),
        ({"types": {3: None}}, "Config.types"),
        ({"types": {int: None}}, "Config.types"),
        ({"patterns": {3: None}}, "Config.patterns"),
        ({"names": {"0": 4}}, "Config.names['0']"),
        ({"residual_bits": 8.0}, "Config.residual_bits"),
        ({"input_range": "minmax"}, "Config.input_range"),
        ({"input_range": MinMax}, "Config.input_range"),
    ],
    ids=str,
)
def test_config_refuses_other_types(arguments: dict, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"where: {re.escape(where)}\n"):
        Config(**arguments)


def test_an_estimator_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"activation_range is 'minmax'(.|\n)*MinMax\(\)"):
        OpConfig(activation_range="minmax")  # type: ignore[arg-type]
