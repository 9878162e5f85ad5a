"""Equalizations: planted imbalances are found, factors are bounded, and the line stays exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import fxquant
from fxquant.config import OpConfig
from fxquant.errors import CalibrationError, ConfigError, FileFormatError, StageError
from fxquant.inspection import layer_errors
from fxquant.ir import meta
from fxquant.ir.floats import channel_bounds
from fxquant.solvers import (
    ActivationEqualization,
    BiasCorrection,
    CrossLayerEqualization,
    Equalization,
    RoundToNearest,
)
from fxquant.solvers.channel_statistics import BINS, ChannelStatistics, bin_centers
from fxquant.solvers.driver import Options
from fxquant.solvers.equalization import EqualizationProblem
from tests.tolerance import FOLDED, assert_close
from tests.zoo import BY_NAME

STEPS = (RoundToNearest(), BiasCorrection())
X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(7))
SPREAD = torch.exp2(torch.linspace(-5, 0, 8))
NARROW_STEM = fxquant.W4A4.with_rules(names={"stem": OpConfig(8, 4)})  # where the imbalance is


class Separable(nn.Module):
    """conv - depthwise - conv - residual block - classifier, all with ReLU6 or ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.stem(x))))
        x = self.project(x)
        return self.head((x + self.block(x)).relu().mean((2, 3)))


@torch.no_grad()
def separable(spread: Tensor = SPREAD) -> Separable:
    """The channels of the stem differ in size by `spread`, which the depthwise layer undoes."""
    torch.manual_seed(1)
    model = Separable().eval()
    model.stem.weight *= spread.reshape(-1, 1, 1, 1)
    assert model.stem.bias is not None
    model.stem.bias *= spread
    model.depthwise.weight /= spread.reshape(-1, 1, 1, 1)
    return model


def problem_of(model: nn.Module, x: Tensor, config: fxquant.Config) -> EqualizationProblem:
    gm = fxquant.prepare(model, x[:1], config).graph
    return EqualizationProblem.of(gm, [(x,)])


def factors_of(
    step: Equalization, model: nn.Module, config: fxquant.Config = fxquant.W8A8
) -> dict[str, Tensor]:
    """Factors of the output channels of every layer."""
    problem = problem_of(model, X, config)
    factors = step.factors(problem)
    assert factors.shape == (problem.classes.count,) and float(factors[0]) == 1
    return {layer.node.name: factors[layer.outputs] for layer in problem.classes.layers}


def quantized(*steps: Equalization, config: fxquant.Config = fxquant.W8A8) -> fxquant.Quantized:
    return fxquant.quantize(separable(), [X], None, config, (*steps, *STEPS), progress=False)


@torch.no_grad()
def sqnr(network: fxquant.Quantized) -> float:
    expected = separable()(X)
    noise = (network(X) - expected).square().sum()
    return float(10 * torch.log10(expected.square().sum() / noise))


@pytest.mark.parametrize("step", [ActivationEqualization(), CrossLayerEqualization()], ids=repr)
@pytest.mark.parametrize("config", [fxquant.W8A8, NARROW_STEM], ids=["W8A8", "W4A4"])
def test_a_planted_imbalance_is_repaired(step: Equalization, config: fxquant.Config) -> None:
    gain = sqnr(quantized(step, config=config)) - sqnr(quantized(config=config))
    assert gain > 3


@torch.no_grad()
@pytest.mark.parametrize("config", [fxquant.W8A8, NARROW_STEM], ids=["W8A8", "W4A4"])
def test_activations_fill_the_grid_before_a_depthwise_layer(config: fxquant.Config) -> None:
    """Strength 1 is chosen where it costs nothing, and each channel is clipped where it should."""
    problem = problem_of(separable(), X, config)
    factors = ActivationEqualization(smallest=1e-6).factors(problem)
    chosen = factors[problem.classes.values["stem"].flatten()]
    rows = nn.functional.relu6(separable().stem(X)).double().transpose(0, 1).flatten(1)
    steps = problem.steps["stem"]

    def errors(ends: Tensor) -> Tensor:
        scale = ends[:, None] / steps
        return ((rows / scale).round().clamp(max=steps) * scale - rows).square().mean(1)

    tried = torch.stack([errors(rows.amax(1) * k / 100) for k in range(10, 101)])
    assert bool((errors(chosen * rows.max()) < 1.1 * tried.amin(0)).all())
    if steps == 15:
        assert bool((errors(chosen * rows.max()) < 0.9 * errors(rows.amax(1))).any())


def test_less_weight_error_counts_where_it_is_compensated() -> None:
    """Then channels before a dense layer fill the grid, whose columns differ the more."""
    problem = problem_of(separable(), X, fxquant.W4A4)
    dense = problem.classes.values["depthwise"].flatten()
    free, bound = (
        ActivationEqualization(weight_error=part).factors(problem)[dense] for part in (0.0, 100.0)
    )
    assert float(bound.std()) < float(free.std())


@pytest.mark.parametrize("strength", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("smallest", [1 / 32, 0.5, 1.0])
def test_factors_of_activations_are_bounded(strength: float | None, smallest: float) -> None:
    step = ActivationEqualization(strength, smallest)
    for name, factors in factors_of(step, separable()).items():
        assert bool((factors >= smallest).all() and (factors <= 1).all()), name
        if strength == 0 or smallest == 1:
            assert bool((factors == 1).all())


def test_cross_layer_equalization_leaves_room_for_the_samples() -> None:
    problem = problem_of(separable(), X, fxquant.W8A8)
    factors = CrossLayerEqualization().factors(problem)
    for name in problem.classes.clamps:
        scaled = problem.statistics[name].high / factors[problem.classes.values[name]]
        assert float(scaled.max()) <= 6 * (1 + 1e-12)


@pytest.mark.parametrize("step", [ActivationEqualization(1.0), CrossLayerEqualization()], ids=repr)
def test_no_grid_goes_beyond_the_clamp_of_a_channel(step: Equalization) -> None:
    network = quantized(step, config=NARROW_STEM)
    [stem] = [n for n in network.calibrated.graph.nodes if n.name == "stem"]
    _, upper = channel_bounds(stem)
    grid = meta.qparams(stem)
    assert upper is not None and float(upper.max()) > 1.01 * float(upper.min())
    top = float(grid.scale) * (grid.spec.dtype.qmax - int(grid.zero_point))
    assert top <= float(upper.min()) * (1 + 1e-6)


@torch.no_grad()
def test_channels_without_data_keep_their_scale() -> None:
    model = separable()
    assert model.stem.bias is not None
    model.stem.weight[2] = 0.0
    model.stem.bias[2] = -1.0
    for step in (ActivationEqualization(1.0), CrossLayerEqualization()):
        factors = factors_of(step, model)["stem"]
        assert bool(torch.isfinite(factors).all())
    assert float(factors_of(ActivationEqualization(1.0), model)["stem"][2]) == 1


def test_cross_layer_equalization_equalizes_the_weights() -> None:
    """Without clamps the largest row and column of every channel become equal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
                          nn.Conv2d(4, 2, 1)).eval()  # fmt: skip
    factors = factors_of(CrossLayerEqualization(100, 1e6), model)
    a, b, c = (m.weight.detach().double() for m in model if isinstance(m, nn.Conv2d))
    s, t = factors["_0"], factors["_2"]
    a = a / s.reshape(-1, 1, 1, 1)
    b = b * s.reshape(1, -1, 1, 1) / t.reshape(-1, 1, 1, 1)
    c = c * t.reshape(1, -1, 1, 1)
    for made, read in ((a, b), (b, c)):
        rows, columns = made.abs().amax((1, 2, 3)), read.abs().amax((0, 2, 3))
        assert_close(rows, columns, 2e-3)


def test_cross_layer_factors_are_bounded() -> None:
    for factors in factors_of(CrossLayerEqualization(limit=2.0), separable()).values():
        assert bool((factors >= 0.5).all() and (factors <= 2).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ActivationEqualization(strength=1.5),
        lambda: ActivationEqualization(strength=-0.1),
        lambda: ActivationEqualization(smallest=0.0),
        lambda: ActivationEqualization(smallest=2.0),
        lambda: ActivationEqualization(weight_error=-1.0),
        lambda: CrossLayerEqualization(iterations=0),
        lambda: CrossLayerEqualization(limit=0.5),
    ],
)
def test_impossible_parameters(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    x = torch.randn(6, 4, 3, 5).relu()
    shape = (1, 4, 1, 1)
    whole = ChannelStatistics.of(x, shape)
    parts = ChannelStatistics.of(x[:2], shape) + ChannelStatistics.of(x[2:], shape)
    rows = x.double().transpose(0, 1).flatten(1)
    for one in (whole, parts):
        assert one.low.shape == shape and one.count == 90
        assert torch.equal(one.high.flatten(), rows.amax(1))
        assert torch.equal(one.low.flatten(), rows.amin(1))
        assert_close(one.variance.flatten(), rows.var(1, correction=0), 1e-6)
    assert torch.equal(whole.counts, parts.counts)


def test_counts_are_those_of_the_bins() -> None:
    x = torch.randn(1, 3, 40, 50) * torch.tensor([1e-3, 1.0, 1e4]).reshape(1, 3, 1, 1)
    statistics = ChannelStatistics.of(x, (1, 3, 1, 1))
    assert statistics.counts.shape == (1, 3, 1, 1, BINS)
    for channel in range(3):
        values = x[0, channel].flatten().double()
        octave = values.abs().log2().floor()
        part = ((values.abs() / torch.exp2(octave) - 1) * 8).floor()
        centers = values.sign() * torch.exp2(octave) * (1 + (part + 0.5) / 8)
        expected = (centers[:, None] == bin_centers()).sum(0)
        assert torch.equal(statistics.counts[0, channel, 0, 0], expected.float())


def test_expected_errors_are_those_of_rounding() -> None:
    x = torch.randn(4, 3, 40, 40).relu() * torch.tensor([0.1, 1.0, 5.0]).reshape(1, 3, 1, 1)
    statistics = ChannelStatistics.of(x, (1, 3, 1, 1))
    for bits in (3, 4, 8):
        for part in (0.3, 0.6, 1.0):
            high = part * statistics.high
            step = high / ((1 << bits) - 1)
            real = ((x / step).round() * step).clamp(max=high) - x
            expected = real.square().mean((0, 2, 3))
            found = statistics.error(step, torch.zeros_like(high), high).flatten()
            assert_close(found / expected, torch.ones(3), 0.15, f"{bits} bits, {part}")


@pytest.mark.parametrize("name", ["residual", "depthwise", "branches", "decoder", "conv1d", "mlp"])
def test_integers_and_qdq_graph_agree_on_equalized_networks(name: str) -> None:
    entry = BY_NAME[name]
    inputs = entry.inputs(batch=8)
    steps = (CrossLayerEqualization(), ActivationEqualization(), *STEPS)
    network = fxquant.quantize(entry.make(), [inputs], inputs[0][:1], solver=steps, progress=False)
    floating = network.graph_module(*inputs).detach()
    assert_close(network(*inputs), floating, 0.05)
    assert_close(floating, entry.make()(*inputs).detach(), 0.1)


def test_compiled_equals_reference() -> None:
    tvm_backend = pytest.importorskip("tvm_backend")
    network = quantized(ActivationEqualization())
    compiled = tvm_backend.compile(network)
    for x in (X[:1], 3 * X[1:2] + 1):
        assert torch.equal(compiled(x), network.reference(x))


def test_errors_of_layers_are_in_the_units_of_the_network() -> None:
    network, model = quantized(ActivationEqualization(1.0)), separable()
    for error in layer_errors(network, X, model):
        assert error.cumulative.sqnr > 25, error
    [node] = [n for n in network.graph_module.graph.nodes if n.name == "stem"]
    factors = meta.channel_factors(node)
    assert factors is not None
    meta.set_channel_factors(node, torch.ones_like(factors))
    errors = {e.node: e.cumulative.sqnr for e in layer_errors(network, X, model)}
    assert errors["stem"] < 5


def test_factors_are_stored(tmp_path: Path) -> None:
    network = quantized(ActivationEqualization())
    network.save(tmp_path / "net.fxq")
    loaded = fxquant.load(tmp_path / "net.fxq")
    assert torch.equal(loaded.reference(X), network.reference(X))
    for old, new in zip(network.calibrated.graph.nodes, loaded.calibrated.graph.nodes, strict=True):
        before, after = meta.channel_factors(old), meta.channel_factors(new)
        assert (before is None) is (after is None)
        assert before is None or (after is not None and torch.equal(before, after))


@pytest.mark.parametrize("bad", [torch.ones(1, 7, 1, 1), torch.ones(8), -torch.ones(1, 8, 1, 1),
                                 torch.ones(1, 8, 1, 1).double()])  # fmt: skip
def test_nonsense_factors_in_a_file(bad: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "net.fxq"
    quantized(ActivationEqualization()).save(path)
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({**tensors, "stem.factors": bad}, str(path), metadata)
    with pytest.raises(FileFormatError, match="channel factors of stem"):
        fxquant.load(path)


def test_what_was_done_is_recorded() -> None:
    prepared = fxquant.prepare(separable(), X[:1])
    fxquant.calibrate(prepared, [X], (ActivationEqualization(), *STEPS), progress=False)
    network = fxquant.convert(prepared)
    assert "ActivationEqualization" in network.provenance["solver"]
    assert "channels divided by 0.03" in network.notes["stem"]
    assert prepared.refusals == {"head": "it is a result of the network"}


def test_equalizations_come_first() -> None:
    with pytest.raises(ConfigError, match="comes after a solver"):
        fxquant.quantize(separable(), [X], solver=(RoundToNearest(), ActivationEqualization()),
                         progress=False)  # fmt: skip


def test_equalization_needs_data_and_a_solver() -> None:
    prepared = fxquant.prepare(separable(), X[:1])
    with pytest.raises(CalibrationError, match="no calibration data"):
        prepared.solve((ActivationEqualization(), *STEPS), Options(progress=False))
    with pytest.raises(ConfigError, match="no solver"):
        fxquant.calibrate(prepared, [X], ActivationEqualization(), progress=False)


class Interrupted(RoundToNearest):
    """Raises like Ctrl-C in its first layer."""

    def solve_layer(self, problem, rng):
        raise KeyboardInterrupt


def test_an_interrupted_run_is_not_equalized_twice() -> None:
    prepared = fxquant.prepare(separable(), X[:1])
    with pytest.raises(KeyboardInterrupt):
        fxquant.calibrate(prepared, [X], (ActivationEqualization(1.0), Interrupted()),
                          progress=False)  # fmt: skip
    with pytest.raises(StageError, match="equalized already"):
        fxquant.calibrate(prepared, None, STEPS, progress=False)
    fxquant.calibrate(prepared, None, (ActivationEqualization(1.0), *STEPS), progress=False)
    expected = quantized(ActivationEqualization(1.0))
    assert torch.equal(fxquant.convert(prepared).reference(X), expected.reference(X))


def test_a_graph_with_a_fixed_batch() -> None:
    exported = torch.export.export(separable(), (X[:4],))
    steps = (ActivationEqualization(), *STEPS)
    network = fxquant.quantize(exported, list(X.split(4)), X[:4], solver=steps, progress=False)
    assert_close(network(X), separable()(X).detach(), 0.1)


def test_statistics_are_those_of_the_new_graph() -> None:
    """Grids after equalization cover the values of the rewritten network."""
    network = quantized(ActivationEqualization(1.0))
    nodes = {n.name: n for n in network.calibrated.graph.nodes}
    factors = meta.channel_factors(nodes["stem"])
    assert factors is not None
    model = separable()
    with torch.no_grad():
        value = nn.functional.relu6(model.stem(X)) / factors
    grid = meta.qparams(nodes["stem"])
    top = float(grid.scale) * (255 - int(grid.zero_point))
    assert 0.7 * float(value.max()) < top < 1.01 * float(value.max())
    assert_close(value.amax((0, 2, 3)), value.max().expand(8), FOLDED)
