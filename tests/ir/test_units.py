"""Basic-Units: cut where every path from input to output passes."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

import fxquant
from fxquant.ir.units import cut_points, units
from tests.graphs import fused
from tests.zoo import BY_NAME


@cache
def unit_case(entry: str) -> tuple:
    """Fused graph of a zoo model and its units."""
    model = BY_NAME[entry]
    gm = fused(model.make(), *model.inputs())
    return gm, units(gm)


def layers_of(model: nn.Module, x: torch.Tensor) -> list[list[str]]:
    """Weighted layers of every unit that has some."""
    gm = fused(model.eval(), x)
    nodes = {n.name: n for n in gm.graph.nodes}
    found = [[n for n in u.nodes if len(nodes[n].args) > 1] for u in units(gm)]
    return [names for names in found if names]


def test_layers_of_a_plain_chain_go_in_pairs_but_for_the_first() -> None:
    chain = [nn.Conv2d(3, 4, 1)] + [nn.Conv2d(4, 4, 3) for _ in range(4)]
    model = nn.Sequential(*(m for c in chain for m in (c, nn.ReLU())))
    assert layers_of(model, torch.zeros(1, 3, 12, 12)) == [["_0"], ["_2", "_4"], ["_6", "_8"]]


def test_depthwise_layers_join_the_pointwise_layers_around_them() -> None:
    def depthwise() -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3, groups=4)

    stages = [nn.Conv2d(3, 4, 1), depthwise(), nn.Conv2d(4, 4, 1),  # separable
              nn.Conv2d(4, 4, 1), depthwise(), nn.Conv2d(4, 4, 1)]  # inverted  # fmt: skip
    found = layers_of(nn.Sequential(*stages), torch.zeros(1, 3, 12, 12))
    assert found == [["_0"], ["_1", "_2"], ["_3", "_4", "_5"]]


def test_activation_stays_with_its_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.MaxPool2d(2)).eval()
    found = units(fused(model, torch.zeros(1, 3, 4, 4)))
    assert [u.nodes for u in found] == [("_0", "_1"), ("_2",)]


def test_a_unit_ends_with_a_tensor() -> None:
    """Not with the pair that a pooling with indices returns."""

    class Unpools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.unpool(*self.pool(self.conv(x)))

    x = torch.randn(2, 3, 4, 4)
    gm = fused(Unpools().eval(), x)
    nodes = {n.name: n for n in gm.graph.nodes}
    assert all("shape" in nodes[u.output].meta for u in units(gm))
    assert fxquant.quantize(Unpools().eval(), [x], x, progress=False)(x).shape == (2, 4, 4, 4)


def test_residual_block_is_one_unit() -> None:
    _, found = unit_case("residual")
    block = next(u for u in found if len(u.nodes) > 1)
    assert block.nodes == ("a_0", "b_0")
    assert block.inputs == ("stem_0",)
    assert block.output == "b_0"


def test_inception_block_is_one_unit() -> None:
    gm, found = unit_case("branches")
    assert found[0].inputs == ("x",)
    assert found[0].output == "cat"
    assert len(found[0].nodes) == 6
    assert [len(u.nodes) for u in found[1:]] == [1] * (len(found) - 1)
    assert "cat" in cut_points(gm)


def test_squeeze_excite_lies_inside_its_block() -> None:
    _, found = unit_case("inverted_bottleneck")
    block = max(found, key=lambda u: len(u.nodes))
    assert block.inputs == ("stem_0",)
    assert any("se" in n for n in block.nodes)


def test_units_partition_every_zoo_graph() -> None:
    """Every operator in exactly one unit, in execution order; inputs come from before."""
    for name, entry in BY_NAME.items():
        gm, found = unit_case(name)
        order = [n.name for n in gm.graph.nodes if n.op.startswith("call_")]
        assert [n for u in found for n in u.nodes] == order
        known = {n.name for n in gm.graph.nodes if n.op == "placeholder"}
        for unit in found:
            assert set(unit.inputs) <= known
            assert unit.output in unit.nodes
            known |= set(unit.nodes)
        assert len(entry.shapes) == sum(n.op == "placeholder" for n in gm.graph.nodes)


def test_inputs_of_a_unit_are_few() -> None:
    """Between two cut points nothing but the earlier one's value is read."""
    for name in ("residual", "inverted_bottleneck", "branches", "option_a", "channel_shuffle"):
        _, found = unit_case(name)
        assert all(len(u.inputs) == 1 for u in found), name
