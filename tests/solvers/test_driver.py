"""The driver: layers are solved in order on quantized prefixes, with bounded memory."""

from __future__ import annotations

import torch
from torch import nn

import fxquant
from fxquant.calibration import SampleStore
from fxquant.ir import meta
from fxquant.ops import Operand
from fxquant.ops.qdq import quantize
from fxquant.solvers import LayerProblem, LayerSolution, LayerSolver, RoundToNearest
from tests.tolerance import assert_close
from tests.zoo import BY_NAME

X = torch.randn(20, 3, 9, 7, generator=torch.Generator().manual_seed(1))


class Recording(LayerSolver):
    """Round to nearest that keeps the problems it was given."""

    def __init__(self) -> None:
        self.problems: list[LayerProblem] = []
        self.random: list[float] = []

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        self.problems.append(problem)
        self.random.append(float(torch.rand((), generator=rng)))
        return RoundToNearest().solve_layer(problem, rng)


def solved(name: str, seed: int = 0) -> tuple[Recording, fxquant.Quantized]:
    solver = Recording()
    model = BY_NAME[name].make()
    return solver, fxquant.quantize(model, [X], solver=solver, seed=seed, progress=False)


def test_every_layer_once_in_execution_order() -> None:
    solver, _ = solved("residual")
    names = [p.layer.node.name for p in solver.problems]
    assert names == ["stem_0", "a_0", "b_0", "down_0", "head_fc"]


def test_operands_come_under_both_prefixes() -> None:
    """Float inputs are the float network's, quantized ones lie on their grids."""
    solver, quantized = solved("residual")
    problem = solver.problems[2]  # conv with a residual: two operands
    layer = problem.layer
    floats, quants = problem.float_operands, problem.quantized_operands
    assert all(len(chunk) == 2 for chunk in (*floats, *quants))
    assert sum(len(x) for x, _ in floats) == sum(len(x) for x, _ in quants) == len(X)
    grid = Operand.of(layer.input)
    x = quants[0][0]
    codes = quantize(x, scale=grid.scale, zero_point=grid.zero_point, qmin=grid.qmin,
                     qmax=grid.qmax)  # fmt: skip
    assert_close((codes - grid.zero_point) * grid.scale, x, 1e-6)
    assert_close(torch.cat([c[0] for c in floats]), torch.cat([c[0] for c in quants]), 0.1)
    assert layer.output is not None and quantized is not None


def test_last_layer_has_no_output_grid() -> None:
    solver, _ = solved("residual")
    assert solver.problems[-1].layer.output is None


def test_shared_weight_is_solved_once() -> None:
    solver, _ = solved("shared_module")
    frozen = [p.layer.frozen for p in solver.problems]
    assert frozen == [False, False, True, False]  # stem, the shared convolution twice, head


def test_randomness_is_the_seeds() -> None:
    first, second, other = (solved("residual", seed)[0].random for seed in (1, 1, 2))
    assert first == second != other


def test_weights_become_codes() -> None:
    _, quantized = solved("residual")
    for node in quantized.calibrated.graph.nodes:
        if node.op == "get_attr" and meta.quant(node) is not None:
            assert meta.tensor_of(quantized.calibrated, node).dtype == torch.int8


def test_reservoir_keeps_a_bounded_uniform_sample() -> None:
    store = SampleStore(50)
    for start in range(0, 1000, 20):
        store.add((torch.arange(start, start + 20).float()[:, None],))
    kept = store.stacked()[0].flatten()
    assert store.seen == 1000 and len(kept) == 50 and len(kept.unique()) == 50
    assert 300 < float(kept.mean()) < 700


def test_single_layer_and_no_layer() -> None:
    one = fxquant.quantize(nn.Conv2d(3, 2, 1).eval(), [X], progress=False)
    assert one.reference(X).shape == (20, 2, 9, 7)
    none = fxquant.quantize(nn.Sequential(nn.ReLU()).eval(), [X], progress=False)
    assert_close(none.reference(X), X.relu(), 0.01)
