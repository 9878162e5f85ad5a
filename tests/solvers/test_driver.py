"""The driver: layers are solved in order on quantized prefixes, with bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import fxquant
from fxquant.calibration import SampleStore
from fxquant.errors import CalibrationError, ConfigError, FileFormatError
from fxquant.ir import meta
from fxquant.numerics.types import QParams
from fxquant.ops import Operand
from fxquant.ops.qdq import quantize
from fxquant.solvers import (
    GPTQ,
    UWC,
    AdaRound,
    BiasCorrection,
    CrossLayerEqualization,
    EasyQuant,
    LayerProblem,
    LayerSolution,
    LayerSolver,
    NetworkTuning,
    RoundToNearest,
    Scope,
    Solver,
    Training,
    UnitProblem,
    UnitSolution,
    UnitSolver,
    ValueProblem,
    driver,
)
from fxquant.solvers.activations import ActivationMemory
from fxquant.solvers.driver import passes
from fxquant.solvers.regions import regions
from tests.solvers.nets import X as IMAGES
from tests.solvers.nets import residual
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


def test_layers_see_as_many_samples_as_fit_the_memory() -> None:
    def seen(memory: int) -> list[int]:
        solver = Recording()
        fxquant.quantize(
            residual(), [IMAGES.repeat(4, 1, 1, 1)], solver=solver, memory=memory, progress=False
        )
        return [sum(len(chunk[0]) for chunk in p.float_operands) for p in solver.problems]

    whole, part = seen(1 << 30), seen(1 << 20)
    assert set(whole) == {4 * len(IMAGES)}
    assert min(part) < min(whole)


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


def test_samples_come_in_random_but_fixed_order() -> None:
    """Calibration data is often sorted by class, and solvers split it."""
    store = SampleStore(50)
    store.add((torch.arange(50).float()[:, None],))
    first, second = (store.stacked()[0].flatten() for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(50).float())
    assert abs(float(first[:25].mean()) - 24.5) < 6


def test_single_layer_and_no_layer() -> None:
    one = fxquant.quantize(nn.Conv2d(3, 2, 1).eval(), [X], progress=False)
    assert one.reference(X).shape == (20, 2, 9, 7)
    none = fxquant.quantize(nn.Sequential(nn.ReLU()).eval(), [X], progress=False)
    assert_close(none.reference(X), X.relu(), 0.01)


def test_unit_problems_hold_inputs_grids_and_targets() -> None:
    """What a unit solver sees: quantized inputs on their grids, targets of the float network."""

    class Unchanged(UnitSolver):
        def __init__(self) -> None:
            self.problems: list[UnitProblem] = []

        def solve_unit(self, problem: UnitProblem, rng: torch.Generator) -> UnitSolution:
            self.problems.append(problem)
            weights = {layer.weight_name: layer.start for layer in problem.layers.values()}
            return UnitSolution(weights, {n: x.start_bias for n, x in problem.layers.items()})

    solver, model = Unchanged(), residual()
    fxquant.quantize(model, [IMAGES], config=fxquant.W4A4, solver=solver, progress=False)
    names = [list(p.layers) for p in solver.problems]
    assert names == [["stem"], ["a", "b"], ["expand", "depthwise", "project"], ["head"]]
    block = solver.problems[1]
    assert set(block.grids) == {"a", "b"} and set(block.fixed_grids) == {"stem"}
    with torch.no_grad():
        stem = block.float_inputs["stem"]
        expected = (stem + model.b(model.a(stem).relu())).relu()
        assert_close(stem.sum(0), model.stem(IMAGES).relu().sum(0), 1e-5)
    assert_close(block.targets["b"], expected, 1e-5)
    grid = Operand.of(block.fixed_grids["stem"])
    codes = block.quantized_inputs["stem"] / grid.scale + grid.zero_point
    assert_close(codes, codes.round(), 1e-4)


def test_steps_share_a_pass_unless_their_regions_differ() -> None:
    layerwise, unit = RoundToNearest(), UWC()
    layer, network = AdaRound(), NetworkTuning()
    assert passes((layerwise, unit, unit)) == [(Scope.UNIT, [layerwise, unit, unit])]
    assert passes((layerwise, layer, unit, network, layerwise)) == [
        (Scope.LAYER, [layerwise, layer]),
        (Scope.UNIT, [unit]),
        (Scope.NETWORK, [network]),
        (Scope.UNIT, [layerwise]),
    ]
    with pytest.raises(ConfigError, match="no solver"):
        fxquant.quantize(residual(), [IMAGES], solver=(), progress=False)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_regions_hold_every_operator_once(name: str) -> None:
    entry = BY_NAME[name]
    prepared = fxquant.prepare(entry.make(), entry.inputs())
    operators = [n.name for n in prepared.graph.graph.nodes if n.op.startswith("call_")]
    for scope in Scope:
        assert [n for u in regions(prepared.graph, scope) for n in u.nodes] == operators


STEPS = (RoundToNearest(), BiasCorrection(), UWC(Training(iterations=6, batch=8)))


def test_activations_spilled_to_disk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spilled: list[int] = []
    allocate = ActivationMemory.allocate

    def counting(self: ActivationMemory, *arguments) -> torch.Tensor:
        result = allocate(self, *arguments)
        spilled.append(self.spilled)
        return result

    monkeypatch.setattr(ActivationMemory, "allocate", counting)
    results = [
        fxquant.quantize(
            residual(),
            [IMAGES],
            config=fxquant.W4A4,
            solver=STEPS[-1],
            progress=False,
            memory=memory,
        )
        for memory in (1 << 30, 1 << 14)
    ]
    assert spilled[0] == 0 and spilled[-1] > 0
    assert torch.equal(results[0](IMAGES), results[1](IMAGES))


def test_activation_memory_counts_and_refuses_what_no_disk_holds() -> None:
    memory = ActivationMemory(1000)
    first = memory.allocate((2, 3, 4, 5))
    assert first.shape == (2, 3, 4, 5) and memory.used == 480 and memory.spilled == 0
    second = memory.allocate((2, 100))
    second.fill_(3.0)
    assert memory.spilled == 800 and float(second.sum()) == 600
    memory.free(first)
    assert memory.used == 0
    with pytest.raises(CalibrationError, match="no room"):
        memory.allocate((1 << 40, 1000))


class Interrupting(RoundToNearest):
    """Stops like Ctrl-C at a layer, once."""

    calls: ClassVar[list[str]] = []
    stop_at: ClassVar[str] = ""

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        name = problem.layer.node.name
        if name == Interrupting.stop_at:
            Interrupting.stop_at = ""
            raise KeyboardInterrupt
        Interrupting.calls.append(name)
        return RoundToNearest.solve_layer(self, problem, rng)


@pytest.mark.parametrize("again", [False, True], ids=["goes_on", "same_call"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["in_memory", "on_disk"])
def test_an_interrupted_run_continues_where_it_stopped(
    on_disk: bool, again: bool, tmp_path: Path
) -> None:
    steps = (Interrupting(), BiasCorrection(), UWC(Training(iterations=6, batch=8)))
    Interrupting.calls.clear()
    whole = fxquant.quantize(residual(), [IMAGES], solver=steps, progress=False)
    Interrupting.calls.clear()
    Interrupting.stop_at = "depthwise"
    checkpoint = tmp_path / "units" if on_disk else None
    prepared = fxquant.prepare(residual(), IMAGES[:1])
    with pytest.raises(KeyboardInterrupt):
        fxquant.calibrate(prepared, [IMAGES], steps, progress=False, checkpoint=checkpoint)
    if on_disk and not again:  # another process
        prepared = fxquant.prepare(residual(), IMAGES[:1])
    data = [IMAGES] if on_disk or again else None
    fxquant.calibrate(prepared, data, steps, progress=False, checkpoint=checkpoint)
    calls = Interrupting.calls
    assert calls == ["stem", "a", "b", "expand", "expand", "depthwise", "project", "head"]
    assert torch.equal(fxquant.convert(prepared)(IMAGES), whole(IMAGES))


@pytest.mark.parametrize("steps", [RoundToNearest(), (CrossLayerEqualization(), GPTQ()), None])
def test_another_solver_does_not_go_on_with_units_of_an_interrupted_one(
    steps: Solver | None, tmp_path: Path
) -> None:
    whole = fxquant.quantize(residual(), [IMAGES], solver=steps, progress=False)
    Interrupting.stop_at = "depthwise"
    prepared = fxquant.prepare(residual(), IMAGES[:1])
    with pytest.raises(KeyboardInterrupt):
        fxquant.calibrate(prepared, [IMAGES], Interrupting(), progress=False)
    if steps is not None:
        fxquant.calibrate(prepared, None, steps, progress=False)
    assert torch.equal(fxquant.convert(prepared)(IMAGES), whole(IMAGES))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    def run(seed: int) -> None:
        prepared = fxquant.prepare(residual(), IMAGES[:1])
        fxquant.calibrate(prepared, [IMAGES], STEPS, progress=False, seed=seed, checkpoint=tmp_path)

    run(0)
    with pytest.raises(FileFormatError, match="another run"):
        run(1)
    path = next(tmp_path.glob("unit-*"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FileFormatError, match="cannot be read"):
        run(0)


def test_sums_keep_their_headroom_when_an_operand_gets_coarser() -> None:
    """Else the integer form would refuse the grid of the sum."""

    class Coarser(RoundToNearest):
        def choose_grid(self, problem: ValueProblem) -> QParams:
            grid = problem.grid
            return QParams(grid.spec, grid.scale * (6 if problem.name == "stem" else 1),
                           grid.zero_point)  # fmt: skip

    result = fxquant.quantize(residual(), [IMAGES], solver=Coarser(), progress=False)
    grids = {n.name: n.meta["quant"].qparams for n in result.calibrated.graph.nodes
             if "quant" in n.meta}  # fmt: skip
    assert float(grids["b"].scale) > 0.4 * float(grids["stem"].scale)
    assert result.reference(IMAGES).shape == result(IMAGES).shape


@pytest.mark.parametrize(
    "steps",
    [
        (GPTQ(),),
        (EasyQuant(rounds=1), GPTQ()),
        (RoundToNearest(), BiasCorrection()),
        (RoundToNearest(), UWC(Training(iterations=2)), BiasCorrection()),
    ],
    ids=["gptq", "grids change", "biases change", "units are trained between"],
)
@pytest.mark.parametrize("name", ["residual", "shared_module"])
def test_results_a_walk_has_seen_are_those_of_running_the_region(
    name: str, steps: tuple[Solver, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantized() -> fxquant.Quantized:
        return fxquant.quantize(BY_NAME[name].make(), [X], solver=steps, progress=False)

    advances: list[bool] = []
    advance = driver._Driver._advance

    def counted(self, program, values, simulated):  # type: ignore[no-untyped-def]
        advances.append(simulated)
        return advance(self, program, values, simulated)

    monkeypatch.setattr(driver._Driver, "_advance", counted)
    walked = quantized()
    fewer = advances.count(False)
    monkeypatch.setattr(driver._Driver, "_saw_all", lambda self, walk: False)
    assert contents(walked) == contents(quantized())
    assert fewer < advances.count(False) - fewer  # in regions with layers it ran in the walk only


def contents(quantized: fxquant.Quantized) -> dict[str, tuple[bytes, ...]]:
    """Bytes of every constant and every grid."""
    found = {}
    for node in quantized.calibrated.graph.nodes:
        value = meta.quant(node)
        grid = (value.qparams.scale, value.qparams.zero_point) if value and value.qparams else ()
        own = (meta.tensor_of(quantized.calibrated, node),) if node.op == "get_attr" else ()
        found[node.name] = tuple(t.detach().numpy().tobytes() for t in (*grid, *own))
    return found
