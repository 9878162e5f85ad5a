"""Channel classes and the rewrite: which channels are scaled together, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxquant
from fxquant.errors import NumericsError
from fxquant.ir import meta
from fxquant.ir.channels import ChannelClasses, channel_classes
from fxquant.ir.floats import FloatNetwork, channel_bounds
from fxquant.passes.equalize import equalize
from tests.tolerance import FOLDED, assert_close
from tests.zoo import BY_NAME, ZOO, Head, ZooModel

# Nets of the zoo where no layer's result can be scaled.
UNSCALED = ("two_in_two_out", "shared_module", "lrn", "constants")


class Values(FloatNetwork):
    """Keeps every value."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = self.values[n.name] = super().run_node(n)
        return value


@torch.no_grad()
def values_of(gm: GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    interpreter = Values(gm)
    interpreter.run(*inputs)
    return interpreter.values


def annotated(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    return fxquant.prepare(model, inputs).graph


def random_factors(classes: ChannelClasses) -> Tensor:
    """Factors in [1/8, 8]."""
    rng = torch.Generator().manual_seed(3)
    factors = torch.exp2(6 * torch.rand(classes.count, generator=rng, dtype=torch.float64) - 3)
    factors[0] = 1.0
    return factors


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_the_float_network_computes_the_same(entry: ZooModel) -> None:
    inputs = entry.inputs(batch=3)
    gm = annotated(entry.make(), entry.inputs())
    before = values_of(gm, inputs)
    classes = channel_classes(gm)
    equalize(gm, classes, random_factors(classes))
    after = values_of(gm, inputs)
    for node in gm.graph.nodes:
        if node.op in ("get_attr", "output") or not isinstance(after[node.name], Tensor):
            continue
        factors = meta.channel_factors(node)
        value = after[node.name] if factors is None else after[node.name] * factors
        assert_close(value, before[node.name], FOLDED, node.name)
    scaled = any(meta.channel_factors(n) is not None for n in gm.graph.nodes)
    assert scaled is (entry.name not in UNSCALED)


def test_twice_is_once_with_the_product() -> None:
    entry = BY_NAME["residual"]
    inputs, gm = entry.inputs(), annotated(entry.make(), entry.inputs())
    before = values_of(gm, inputs)
    for _ in range(2):
        classes = channel_classes(gm)
        equalize(gm, classes, random_factors(classes))
    after = values_of(gm, inputs)
    [factors] = [meta.channel_factors(n) for n in gm.graph.nodes if n.name == "a_0"]
    assert factors is not None
    assert_close(after["a_0"] * factors, before["a_0"], FOLDED)


def test_the_callers_model_keeps_its_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gm = annotated(model, (torch.randn(1, 3, 4, 4),))
    classes = channel_classes(gm)
    equalize(gm, classes, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, 2, 3, 4, 0], [2.0, 2, 3, 4, 5],
                                 [1.0, 2, 3, 4, float("nan")]])  # fmt: skip
def test_impossible_factors(bad: list[float]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    gm = annotated(model, (torch.randn(1, 3, 4, 4),))
    with pytest.raises(NumericsError, match="channel factors"):
        equalize(gm, channel_classes(gm), torch.tensor(bad).double())


def test_every_channel_keeps_its_clamp() -> None:
    """In float; the operator has one for all channels, the loosest, until the grid has an end."""
    layer = nn.Conv2d(1, 2, 1, bias=False)
    layer.weight.data = torch.tensor([1.0, -0.5]).reshape(2, 1, 1, 1)
    model = nn.Sequential(layer, nn.ReLU6(), nn.Conv2d(2, 1, 1)).eval()
    x = torch.linspace(-20, 20, 64).reshape(1, 1, 8, 8)
    gm = annotated(model, (x,))
    node = next(n for n in gm.graph.nodes if meta.opdef(n) is not None)
    before = values_of(gm, (x,))[node.name]
    classes = channel_classes(gm)
    assert classes.clamps == {node.name: (0.0, 6.0)}
    factors = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    equalize(gm, classes, factors)
    after = values_of(gm, (x,))[node.name] * meta.channel_factors(node)
    assert bool((before == 6).any((0, 2, 3)).all())
    assert_close(after, before, FOLDED)
    assert node.kwargs["clamp"] == (0.0, 24.0)
    lower, upper = channel_bounds(node)
    assert lower is None and upper is not None
    assert_close(upper.flatten(), torch.tensor([12.0, 24.0]), 1e-6)


def classes_at(classes: ChannelClasses, name: str) -> tuple[list[int], list[int]]:
    [layer] = [x for x in classes.layers if x.node.name == name]
    return layer.inputs.tolist(), layer.outputs.tolist()


def test_a_residual_sum_ties_its_terms() -> None:
    entry = BY_NAME["residual"]
    classes = channel_classes(annotated(entry.make(), entry.inputs()))
    stem, a, b = (classes_at(classes, name) for name in ("stem_0", "a_0", "b_0"))
    assert stem[1] == a[0] == b[1] == classes_at(classes, "down_0")[0]
    assert not set(a[1]) & set(stem[1]) and len(set(stem[1])) == 8


def test_a_concatenation_keeps_its_parts_apart() -> None:
    """The fourth part is the network's input, which is not scaled."""
    entry = BY_NAME["branches"]
    classes = channel_classes(annotated(entry.make(), entry.inputs()))
    parts = [classes_at(classes, name)[1] for name in ("one_0", "two_1_0", "pool_1_0")]
    assert classes_at(classes, "head_fc")[0] == [*parts[0], *parts[1], *parts[2], 0, 0, 0]


def test_a_flattened_map_repeats_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(2 * 4, 5)).eval()  # fmt: skip
    classes = channel_classes(annotated(model, (torch.randn(1, 3, 4, 4),)))
    assert classes_at(classes, "_4")[0] == [1, 1, 1, 1, 2, 2, 2, 2]


class InputAdded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), Head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x) + x)


class Spread(nn.Module):
    """The linear layer reads positions, not channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 2, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x))


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), Head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.hardtanh(self.conv(x), 0.5, 2.0))


class PaddedWithOnes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), Head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pad(self.conv(x), (1, 1, 1, 1), value=1.0))


@pytest.mark.parametrize(
    "model, layer, reason",
    [
        (BY_NAME["residual"].make(), "head_fc", "a result of the network"),
        (BY_NAME["lrn"].make(), "_0", "depends on its scale"),
        (BY_NAME["softmax_island"].make(), "conv", "stays in float"),
        (BY_NAME["inverted_bottleneck"].make(), "expand_0", "hardswish"),
        (BY_NAME["shared_module"].make(), "stem", "shares its parameters"),
        (InputAdded(), "conv", "added to a value that cannot be scaled"),
        (Spread(), "conv", "several of its channels as one"),
        (Clamped(), "conv", "no room above 0"),
        (PaddedWithOnes(), "conv", "pad"),
    ],
    ids=["result", "lrn", "island", "nonlinear", "shared", "input", "spread", "clamp", "pad"],
)
def test_refusals_have_reasons(model: nn.Module, layer: str, reason: str) -> None:
    classes = channel_classes(annotated(model.eval(), (torch.randn(2, 3, 4, 4),)))
    assert reason in classes.refusals[layer]
    assert set(classes_at(classes, layer)[1]) == {0}
