"""EasyQuant: the cosine never falls, channels are independent, readers of a value share a grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.numerics.types import QParams, QTensor, weight_spec
from fxquant.ops.clamp import apply_clamp
from fxquant.solvers import (
    GPTQ,
    EasyQuant,
    LayerProblem,
    LayerSolution,
    Reader,
    RoundToNearest,
    ValueProblem,
)
from fxquant.solvers.easyquant import cost, round_value, sample_patches
from fxquant.solvers.scale_search import round_to_grid
from tests.graphs import signal_to_noise
from tests.solvers.layers import GEOMETRIES, grid, make_problem
from tests.solvers.nets import X, residual
from tests.tolerance import assert_close, assert_same
from tests.zoo import BY_NAME

RNG = torch.Generator()
FEW = EasyQuant(candidates=20)
ALL = EasyQuant(candidates=20, positions=1 << 30)


def one_minus_cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return 1 - float(a @ b / (a.norm() * b.norm()))


def value_problem(names: list[str], bits: int = 4, finest: float = 0.0) -> ValueProblem:
    """A value that layers of one input shape read."""
    problems = [make_problem(name, bits, seed=i) for i, name in enumerate(names)]
    first = problems[0]
    floats = [operands[0] for operands in first.float_operands]
    value = [operands[0] for operands in first.quantized_operands]
    readers = [
        Reader(replace(p.layer, weight_name=f"weight{i}"), floats, value)
        for i, p in enumerate(problems)
    ]
    return ValueProblem("value", grid(0.3, bits), finest, floats, value, readers)


def reader_cost(reader: Reader, qparams: QParams) -> float:
    """The definition, without sampling."""
    layer = reader.layer
    weight = layer.start.dequantize()
    expected, actual = [], []
    for x, x_q in zip(reader.float_operand, reader.operand, strict=True):
        expected.append(layer.run((x,), layer.weight, layer.bias))
        actual.append(layer.run((round_value(x_q, qparams),), weight, layer.start_bias))
    clamp = layer.node.kwargs.get("clamp")
    return one_minus_cosine(*(apply_clamp(torch.cat(y), clamp) for y in (expected, actual)))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_at_all_positions_are_the_whole_layer(name: str) -> None:
    problem = make_problem(name)
    layer, chunks = problem.layer, [operands[0] for operands in problem.float_operands]
    rows = sample_patches(layer, chunks, 1 << 30)  # [G, P, K]
    weight = layer.weight.reshape(layer.groups, -1, rows.shape[2])
    expected = torch.cat([layer.run((x,), layer.weight, None) for x in chunks])
    expected = expected.movedim(layer.channel_axis, -1).reshape(rows.shape[1], -1)
    assert_close((rows @ weight.mT).transpose(0, 1).flatten(1), expected)


def test_sampled_positions_are_the_same_for_both_networks() -> None:
    problem = make_problem("stride")
    chunks = [operands[0] for operands in problem.float_operands]
    rows = sample_patches(problem.layer, chunks, 5)
    assert rows.shape == (1, 6, 18)  # 4 and 2 samples: their shares of 5, rounded up
    doubled = sample_patches(problem.layer, [2 * x for x in chunks], 5)
    assert_same(doubled, 2 * rows)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ["asymmetric", "depthwise", "transposed", "linear"])
def test_the_cosine_of_a_channel_never_falls(name: str, bits: int) -> None:
    problem = make_problem(name, bits)
    layer = problem.layer
    solution = FEW.solve_layer(problem, RNG)
    before, after = solution.losses
    assert after <= before
    if bits <= 4:
        assert after < before
    expected, old, new = (
        torch.cat([layer.run(o, w, layer.bias) for o in operands]).movedim(layer.channel_axis, 0)
        for operands, w in (
            (problem.float_operands, layer.weight),
            (problem.quantized_operands, layer.start.dequantize()),
            (problem.quantized_operands, solution.weight.dequantize()),
        )
    )
    for e, a, b in zip(expected, old, new, strict=True):  # all positions fit the sample
        assert one_minus_cosine(e, b) <= one_minus_cosine(e, a) + 1e-6
    limit = layer.weight_spec.dtype.qmax
    assert int(solution.weight.codes.abs().max()) <= limit
    factor = solution.weight.qparams.scale / layer.start.qparams.scale
    assert bool(((factor >= 0.499) & (factor <= 2.001)).all())


def test_channels_searched_jointly_and_one_by_one_are_the_same() -> None:
    problem = make_problem("plain", 3)
    layer = problem.layer
    jointly = FEW.solve_layer(problem, RNG).weight
    for c in range(len(layer.weight)):
        own = slice(c, c + 1)
        q = layer.start.qparams
        start = QTensor(layer.start.codes[own], QParams(q.spec, q.scale[own], q.zero_point[own]))
        alone = replace(layer, weight=layer.weight[own], bias=layer.bias[own], start=start,
                        start_bias=layer.start_bias[own])  # fmt: skip
        solution = FEW.solve_layer(replace(problem, layer=alone), RNG).weight
        assert_same(solution.codes, jointly.codes[own])
        assert_same(solution.qparams.scale, jointly.qparams.scale[own])


def test_better_codes_of_an_earlier_step_stay() -> None:
    """Rounding to nearest on the same scale does not undo what GPTQ has gained."""
    problem = make_problem("plain", 3)
    start = GPTQ().solve_layer(problem, RNG).weight
    nearest = round_to_grid(problem.layer.weight, start.qparams.scale.double(), weight_spec(3))
    assert not torch.equal(nearest.codes, start.codes)
    later = replace(problem, layer=replace(problem.layer, start=start))
    kept = EasyQuant(low=1, high=1, candidates=1).solve_layer(later, RNG)
    assert_same(kept.weight.codes, start.codes)
    assert_same(kept.weight.qparams.scale, start.qparams.scale)


def test_frozen_layers_stay() -> None:
    problem = make_problem("plain")
    frozen = replace(problem, layer=replace(problem.layer, frozen=True))
    assert FEW.solve_layer(frozen, RNG).weight is problem.layer.start


def test_a_clamp_counts_unless_something_is_added_before() -> None:
    """With all results clamped away every scale is as good: the present one stays."""
    problem = make_problem("plain")
    layer = problem.layer
    layer.node.kwargs = {**layer.node.kwargs, "clamp": (100.0, 101.0)}
    assert FEW.solve_layer(problem, RNG).losses == (0.0, 0.0)
    layer.node.args = (layer.node, layer.node, layer.node, layer.node)
    assert FEW.solve_layer(problem, RNG).losses[0] > 0


def test_an_equalized_layer_has_the_clamp_of_each_channel() -> None:
    problem = make_problem("plain")
    layer, low, high = problem.layer, 0.0, 2.0
    layer.node.kwargs = {**layer.node.kwargs, "clamp": (low, high)}
    factors = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1, 1)
    meta.set_channel_factors(layer.node, factors)
    target, start = (
        torch.cat([layer.run(o, w, layer.bias) for o in operands]).clamp(low, high)
        for operands, w in (
            (problem.float_operands, layer.weight),
            (problem.quantized_operands, layer.start.dequantize()),
        )
    )
    target, start = (torch.minimum(x, high / factors).transpose(0, 1) for x in (target, start))
    expected = [one_minus_cosine(t, s) for t, s in zip(target, start, strict=True)]
    assert ALL.solve_layer(problem, RNG).losses[0] == pytest.approx(sum(expected) / 4, rel=1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
def test_readers_of_a_value_are_searched_jointly(bits: int) -> None:
    """Against the definition: no candidate has a better sum over the readers."""
    problem = value_problem(["plain", "asymmetric"], bits)
    node = problem.readers[0].layer.node
    node.kwargs = {**node.kwargs, "clamp": (0.0, None)}

    def total(qparams: QParams) -> float:
        return sum(reader_cost(r, qparams) for r in problem.readers)

    chosen = ALL.choose_grid(problem)
    scales = 0.3 / torch.linspace(0.5, 2, 20, dtype=torch.float64)
    candidates = [replace(chosen, scale=s.float()) for s in scales] + [problem.grid]
    assert total(chosen) <= min(total(c) for c in candidates) + 2e-6
    assert total(chosen) < total(problem.grid)
    assert torch.equal(chosen.zero_point, problem.grid.zero_point)


def test_the_sum_is_a_compromise() -> None:
    problem = value_problem(["plain", "asymmetric"])
    joint = ALL.choose_grid(problem)
    alone = [ALL.choose_grid(replace(problem, readers=[r])) for r in problem.readers]
    for reader, own in zip(problem.readers, alone, strict=True):
        best, shared = (reader_cost(reader, g) for g in (own, joint))
        assert best <= shared + 1e-6


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_value_without_readers_is_searched_for_itself(bits: int) -> None:
    problem = value_problem(["plain"], bits)
    problem = replace(problem, readers=[])
    chosen = ALL.choose_grid(problem)
    x, x_q = torch.cat(list(problem.float_value)), torch.cat(list(problem.value))
    before, after = (one_minus_cosine(x, round_value(x_q, g)) for g in (problem.grid, chosen))
    assert after < before


def test_scales_stay_above_the_finest() -> None:
    problem = value_problem(["plain"], 8)
    assert float(FEW.choose_grid(problem).scale) < 0.28
    limited = replace(problem, finest=0.29)
    assert float(FEW.choose_grid(limited).scale) >= 0.29


def test_further_rounds_see_the_weights_as_they_will_be() -> None:
    problem = value_problem(["plain", "asymmetric"], 3)

    def result(solver: EasyQuant) -> float:
        """Sum over the readers after their weights are searched on the chosen grid."""
        chosen, total = solver.choose_grid(problem), 0.0
        for reader in problem.readers:
            on_grid = [(round_value(x, chosen),) for x in problem.value]
            layer = replace(reader.layer, input=chosen)
            floats = [(x,) for x in problem.float_value]
            weight = ALL.solve_layer(LayerProblem(layer, floats, on_grid), RNG).weight
            solved = replace(reader, layer=replace(layer, start=weight))
            total += reader_cost(solved, chosen)
        return total

    assert result(replace(ALL, rounds=3)) <= result(ALL) + 1e-6
    readers = [replace(r, layer=replace(r.layer, frozen=True)) for r in problem.readers]
    frozen = replace(problem, readers=readers)
    first, second = (replace(ALL, rounds=r).choose_grid(frozen) for r in (1, 2))
    assert float(second.scale) > 0 and float(first.scale) > 0


def test_cosine_of_zero_vectors() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert cost(zero, zero, 0).tolist() == [0, 0]
    assert cost(zero, one, 0).tolist() == [1, 1]
    assert cost(one, zero, 0).tolist() == [1, 3]
    assert cost(2 * one, one, 0).tolist() == pytest.approx([0, 1])


def test_dead_inputs_and_channels() -> None:
    """Nothing divides by zero; the scales of dead channels follow the grids around them."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(*(m for conv in convs for m in (conv, nn.ReLU()))).eval()
    with torch.no_grad():
        for conv in convs:
            conv.weight[1], conv.bias[:] = 0, 0
    config, solver = fxquant.Config(default=fxquant.OpConfig(4, 4)), EasyQuant(candidates=5)
    for x in (torch.randn(4, 3, 6, 6), torch.zeros(4, 3, 6, 6)):
        quantized = fxquant.quantize(
            model, [x], config=config, solver=(solver, solver), progress=False
        )
        assert bool(torch.isfinite(quantized.reference(x)).all())


class Coarser(RoundToNearest):
    """Doubles the scale of every value after its layer is solved."""

    def choose_grid(self, problem: ValueProblem) -> QParams:
        return replace(problem.grid, scale=problem.grid.scale * 2)


def test_weight_scales_follow_when_a_grid_becomes_coarser() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
    x = torch.randn(4, 3, 6, 6)
    quantized = fxquant.quantize(model, [x], solver=(Coarser(), Coarser()), progress=False)
    assert bool(torch.isfinite(quantized.reference(x)).all())


class Recording(EasyQuant):
    """EasyQuant that keeps what it was asked and what it answered."""

    solutions: list[tuple[LayerProblem, LayerSolution]]

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        solution = super().solve_layer(problem, rng)
        self.solutions.append((problem, solution))
        return solution


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["residual", "inverted_bottleneck", "decoder", "shared_module"])
def test_never_worse_in_any_layer_of_a_network(name: str, bits: int) -> None:
    solver = Recording(candidates=10, positions=200)
    object.__setattr__(solver, "solutions", [])
    entry = BY_NAME[name]
    config = fxquant.Config(default=fxquant.OpConfig(bits, bits))
    quantized = fxquant.quantize(
        entry.make(), [entry.inputs(batch=6)], tuple(x[:1] for x in entry.inputs()), config,
        solver=solver, progress=False,
    )  # fmt: skip
    searched = [s for p, s in solver.solutions if not p.layer.frozen]
    assert searched and all(s.losses[1] <= s.losses[0] for s in searched)
    assert bool(torch.isfinite(quantized.reference(*entry.inputs())).all())


def test_four_bits_gain() -> None:
    model = residual()
    config = fxquant.Config(default=fxquant.OpConfig(4, 4))

    def quality(solver: RoundToNearest | EasyQuant) -> float:
        quantized = fxquant.quantize(model, [X], config=config, solver=solver, progress=False)
        with torch.no_grad():
            return signal_to_noise(model(X), quantized(X))

    assert quality(FEW) > quality(RoundToNearest()) + 0.5


@pytest.mark.parametrize(
    "wrong",
    [{"low": 0.0}, {"low": 3.0}, {"candidates": 0}, {"positions": 0}, {"rounds": 0}],
    ids=str,
)
def test_bad_parameters(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="EasyQuant"):
        EasyQuant(**wrong)
