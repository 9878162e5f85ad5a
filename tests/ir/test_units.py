"""Basic-Units: cut where every path from input to output passes."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from fxquant.ir.units import cut_points, units
from tests.graphs import fused
from tests.zoo import BY_NAME, Head, conv_bn


@cache
def unit_case(entry: str) -> tuple:
    """Fused graph of a zoo model and its units."""
    model = BY_NAME[entry]
    gm = fused(model.make(), *model.inputs())
    return gm, units(gm)


def test_plain_chain_is_one_operator_a_unit() -> None:
    model = nn.Sequential(conv_bn(3, 4, act=nn.ReLU()), conv_bn(4, 5), Head(5)).eval()
    found = units(fused(model, torch.zeros(1, 3, 5, 5)))
    assert all(len(u.nodes) == 1 and len(u.inputs) == 1 for u in found)
    assert [u.output for u in found] == [u.nodes[0] for u in found]


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
