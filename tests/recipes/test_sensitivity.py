"""Measured sensitivities: the definition, what is estimated, and continuing from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fxquant.config import W4A8
from fxquant.errors import CalibrationError, ConfigError, FileFormatError
from fxquant.ir import meta
from fxquant.numerics.types import weight_spec
from fxquant.recipes import Sensitivity
from fxquant.recipes.network import Network, describe
from fxquant.recipes.probe import Probe
from fxquant.recipes.sensitivity import _Store, complete, rounding_error
from fxquant.solvers import UWC, LayerProblem, LayerSolution, LayerSolver, RoundToNearest
from fxquant.solvers.scale_search import round_to_grid, start_scale
from tests.graphs import tensors
from tests.zoo import BY_NAME

WIDTHS = (2, 4, 8)
NEAREST = (RoundToNearest(),)


def network(name: str) -> tuple[Network, tuple[Tensor, ...]]:
    entry = BY_NAME[name]
    return describe(entry.make(), entry.inputs(), W4A8), entry.inputs(batch=20)


def relative_noise(actual: list[Tensor], expected: list[Tensor]) -> float:
    ratios = [
        float((a - e).double().square().sum() / e.double().square().sum())
        for a, e in zip(actual, expected, strict=True)
    ]
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize("name", ["residual", "shared_module", "two_in_two_out", "decoder"])
def test_measured_is_the_noise_of_the_network_with_one_rounded_weight(name: str) -> None:
    net, x = network(name)
    prediction = Sensitivity(NEAREST, samples=20).predict(net, WIDTHS, [x], False)
    for row, weight in zip(prediction.losses, net.free, strict=True):
        for bits, loss in zip(WIDTHS, row, strict=True):
            spec, original = weight_spec(bits), net.tensor(weight)
            rounded = round_to_grid(original, start_scale(original, spec), spec).dequantize()
            assert loss == pytest.approx(noise_with(net, x, weight.node, rounded), rel=1e-3)
    assert prediction.note == "" and bool((np.diff(prediction.losses, axis=1) < 0).all())


@torch.no_grad()
def noise_with(net: Network, x: tuple[Tensor, ...], name: str, weight: Tensor) -> float:
    """Of the whole network with one weight changed."""
    tensor = meta.tensor_of(net.graph, net.node(name))
    original = tensor.clone()
    expected = tensors(net.graph(*x))
    tensor.copy_(weight)
    actual = tensors(net.graph(*x))
    tensor.copy_(original)
    return relative_noise(actual, expected)


class Scaled(LayerSolver):
    """Multiplies the weight by 1.5 and remembers how many operands the layers had."""

    def __init__(self) -> None:
        self.operands: list[int] = []

    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        layer = problem.layer
        assert problem.float_operands is problem.quantized_operands
        assert sum(len(chunk[0]) for chunk in problem.float_operands) == 20
        self.operands.append(len(problem.float_operands[0]))
        scale = layer.start.qparams.scale.double() * 1.5
        weight = round_to_grid(layer.weight * 1.5, scale, layer.weight_spec)
        return LayerSolution(weight, layer.bias)


def test_the_solver_quantizes_the_layer() -> None:
    net, x = network("residual")
    solver = Scaled()
    losses = Sensitivity((solver,), samples=20).predict(net, (8,), [x], False).losses
    assert solver.operands == [1, 2, 1]  # the second layer adds a residual
    for row, weight in zip(losses, net.free, strict=True):
        scaled = 1.5 * net.tensor(weight)
        assert row[0] == pytest.approx(noise_with(net, x, weight.node, scaled), rel=0.05)


def test_noise_of_units_is_that_of_their_results() -> None:
    """The chain's first free layer is a unit of its own or with the next: less is run."""
    net, x = network("inverted_bottleneck")
    whole = Sensitivity(samples=20).predict(net, (4,), [x], False).losses
    units = Sensitivity(samples=20, at="unit").predict(net, (4,), [x], False).losses
    assert whole.shape == units.shape and bool((units > 0).all())
    probes = [Probe(net, list(x), at, NEAREST) for at in ("unit", "network")]
    run = [sum(len(p.nodes) for p in probe.suffixes.values()) for probe in probes]
    assert run[0] < run[1]


def test_missing_ones_are_estimated_from_rounding_errors() -> None:
    net, _ = network("residual")
    names = [w.name for w in net.free]
    errors = np.array([[rounding_error(net.tensor(w), b) for b in WIDTHS] for w in net.free])
    known = {(names[0], 4): 0.5, (names[0], 8): 0.001, (names[1], 4): 0.2, ("unknown", 4): 9.0}
    prediction = complete(net, WIDTHS, known)
    losses = prediction.losses
    assert losses[0, 1] == 0.5 and losses[0, 2] == 0.001 and losses[1, 1] == 0.2
    assert losses[0, 0] == pytest.approx(0.5 * errors[0, 0] / errors[0, 1])
    assert losses[1, 2] == pytest.approx(0.2 * errors[1, 2] / errors[1, 1])
    ratios = [0.5 / errors[0, 1], 0.001 / errors[0, 2], 0.2 / errors[1, 1]]
    assert losses[2] == pytest.approx(sorted(ratios)[1] * errors[2])
    assert f"{losses.size - 3} of {losses.size}" in prediction.note
    assert complete(net, WIDTHS, {}).losses == pytest.approx(errors)


def test_it_stops_in_time_and_continues_from_its_file(tmp_path: Path) -> None:
    net, x = network("residual")
    path = tmp_path / "deep" / "sensitivity.json"
    first = Sensitivity(time_limit=0.0, file=path).predict(net, WIDTHS, [x], False)
    assert len(json.loads(path.read_text())["losses"]) == 1 and "estimated" in first.note
    rest = Sensitivity(file=path).predict(net, WIDTHS, [x], False)
    stored = json.loads(path.read_text())
    assert len(stored["losses"]) == rest.losses.size and rest.note == ""
    assert [bits for _, bits, _ in stored["losses"]] == sorted(
        (bits for _, bits, _ in stored["losses"]), key=[4, 2, 8].index
    )
    fresh = Sensitivity().predict(net, WIDTHS, [x], False)
    assert np.array_equal(fresh.losses, rest.losses)
    stored["losses"] = [[name, bits, 7.0] for name, bits, _ in stored["losses"]]
    path.write_text(json.dumps(stored))
    assert set(Sensitivity(file=path).predict(net, WIDTHS, [x], False).losses.flat) == {7.0}


def test_files_of_other_measurements(tmp_path: Path) -> None:
    net, x = network("residual")
    path = tmp_path / "sensitivity.json"
    Sensitivity(time_limit=0.0, file=path).predict(net, WIDTHS, [x], False)
    for other in (
        Sensitivity(file=path, at="unit"),
        Sensitivity(file=path, samples=3),
        Sensitivity(NEAREST, file=path),
    ):
        with pytest.raises(FileFormatError, match="another measurement"):
            other.predict(net, WIDTHS, [x], False)
    for broken in ("{", "[]", '{"owner": 1}', '{"owner": 1, "losses": [["a", "b"]]}'):
        path.write_text(broken)
        with pytest.raises(FileFormatError, match="holds no sensitivities"):
            Sensitivity(file=path).predict(net, WIDTHS, [x], False)


def test_only_the_first_samples_are_read() -> None:
    net, x = network("residual")
    read = []

    def batches():
        for i in range(0, 20, 4):
            read.append(i)
            yield x[0][i : i + 4]

    some = Sensitivity(samples=6).predict(net, (4,), batches(), False)
    assert read == [0, 4]
    same = Sensitivity(samples=6).predict(net, (4,), [x[0][:6]], False)
    assert some.losses == pytest.approx(same.losses, rel=1e-5)


def test_bad_data_and_parameters() -> None:
    net, _ = network("residual")
    with pytest.raises(ConfigError, match="none was given"):
        Sensitivity().predict(net, WIDTHS, None, False)
    with pytest.raises(CalibrationError, match="no data"):
        Sensitivity().predict(net, WIDTHS, [], False)
    with pytest.raises(ConfigError, match="samples=0"):
        Sensitivity(samples=0)
    for solver in ((), (UWC(),)):
        with pytest.raises(ConfigError, match="layer by layer"):
            Sensitivity(solver)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="unknown"):
        Sensitivity(at="layer")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 9000, '{"owner": "", "losses": 3}', '{"owner": "", "losses": [["a", 4, -1]]}',
     '{"owner": "", "losses": [["a", 1e999, 1]]}', '{"owner": "", "losses": [["a", 4, NaN]]}'],
    ids=["empty", "list", "nested", "number", "negative", "width", "nan"],
)  # fmt: skip
def test_files_that_hold_no_sensitivities(content: str, tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match="holds no sensitivities"):
        _Store(path, "").load()
