"""allocate_bits: what is fixed, what the configuration becomes, and what it brings."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Config, OpConfig
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.recipes import (
    Allocation,
    CodingLength,
    Method,
    ParetoFront,
    Sensitivity,
    allocate_bits,
    pareto_front,
)
from fxquant.recipes.network import describe
from tests.graphs import signal_to_noise
from tests.solvers.nets import X, residual
from tests.zoo import BY_NAME, ZOO, ZooModel

METHODS: tuple[Method, ...] = (CodingLength(), CodingLength("rate"), CodingLength("cluster"))


def allocated(name: str, average: float = 4.0, **kwargs) -> Allocation:
    entry = BY_NAME[name]
    return allocate_bits(entry.make(), entry.inputs(), average, progress=False, **kwargs)


def specs(config: Config, entry: ZooModel) -> tuple[dict[str, int], dict[str, int]]:
    """Bits of weights and of activations by node name."""
    gm = fxquant.prepare(entry.make(), entry.inputs(), config).graph
    known = {n: q.spec.dtype.bits for n in gm.graph.nodes if (q := meta.quant(n)) is not None}
    return (
        {n.name: b for n, b in known.items() if n.op == "get_attr"},
        {n.name: b for n, b in known.items() if n.op != "get_attr"},
    )


def has_free_layers(entry: ZooModel) -> bool:
    try:
        describe(entry.make(), entry.inputs(), fxquant.W4A8)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("entry", [e for e in ZOO if has_free_layers(e)], ids=str)
def test_the_configuration_says_what_the_allocation_says(entry: ZooModel) -> None:
    """Every weight gets its width, no activation changes."""
    base = fxquant.W4A4
    allocation = allocate_bits(entry.make(), entry.inputs(), 4.5, config=base, progress=False)
    weights, activations = specs(allocation.config, entry)
    network = describe(entry.make(), entry.inputs(), base)
    assert weights == {
        w.node: b for w, b in zip(network.weights, allocation.bits.values(), strict=True)
    }
    assert activations == specs(base, entry)[1]
    assert allocation.average_chosen_bits <= 4.5
    assert allocation.size == sum(n.bits * n.size for n in allocation.layers)


def test_first_and_last_layers_are_fixed() -> None:
    for config in (fxquant.W4A8, fxquant.W8A8, Config(default=OpConfig(4, 8))):
        layers = allocated("residual", 3.0, config=config).layers
        assert [n.fixed for n in layers] == [True, False, False, False, True]
        assert layers[0].bits == layers[-1].bits == 8
    own = Config(default=OpConfig(4, 8), first_last=OpConfig(6, 8))
    assert allocated("residual", 3.0, config=own).layers[0].bits == 6


def test_layers_that_rules_name_are_fixed() -> None:
    config = fxquant.W4A8.with_rules(names={"a.0": OpConfig(7, 8), "down.0": None})
    allocation = allocated("residual", 3.0, config=config)
    assert allocation.bits == {"stem.0": 8, "a.0": 7, "b.0": 3, "head.fc": 8}
    with pytest.raises(ConfigError, match="no layer"):
        allocated("residual", config=fxquant.W4A8.with_rules(patterns={".*": OpConfig(4, 8)}))


def test_depthwise_layers_get_four_bits_at_least() -> None:
    allocation = allocated("inverted_bottleneck", 3.3)
    assert allocation.bits["depthwise.0"] == 4
    assert min(allocation.bits.values()) == 2
    with pytest.raises(ConfigError, match="depthwise"):
        allocated("inverted_bottleneck", candidates=(2, 3))


def test_layers_that_share_a_weight_share_its_width() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layers = (nn.Conv2d(3, 4, 1), conv, nn.ReLU(), nn.Conv2d(4, 4, 1), conv, nn.Conv2d(4, 2, 1))
    model, x = nn.Sequential(*layers).eval(), torch.randn(8, 3, 6, 6)
    allocation = allocate_bits(model, x[:1], 3.5, progress=False)
    assert len(allocation.layers) == 4
    quantized = fxquant.quantize(model, [x], config=allocation.config, progress=False)
    shared = allocation.layers[1]
    assert shared.macs == 2 * 144 * 36 and shared.size == 144
    assert len(quantized.calibrated.graph.nodes) > 0


def test_the_callers_model_is_not_changed() -> None:
    model = BY_NAME["residual"].make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = BY_NAME["residual"].inputs()
    allocate_bits(model, x, method=Sensitivity(), data=[x], progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_budgets(method: Method) -> None:
    for average in (2.0, 3.3, 4.0, 6.5, 8.0, 20.0):
        sized = allocated("residual", average, method=method)
        assert sized.average_chosen_bits <= average
    assert set(sized.bits.values()) == {8}
    x = BY_NAME["residual"].inputs()
    uniform = allocate_bits(
        BY_NAME["residual"].make(), x, 4.0, method=method, candidates=(4,), progress=False
    )
    operations = allocated("residual", 4.0, method=method, budget="bit_operations")
    assert operations.bit_operations <= uniform.bit_operations
    assert uniform.size == sum(n.size * (8 if n.fixed else 4) for n in uniform.layers)


def test_the_table() -> None:
    text = str(allocated("residual", 4.0))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["stem.0", "a.0", "b.0", "down.0", "head.fc"]
    assert "fixed" in lines[1] and "KiB" in lines[-1] and "CodingLength" in lines[-1]
    x = BY_NAME["residual"].inputs()
    quick = allocated("residual", method=Sensitivity(time_limit=0.0), data=[x])
    assert "estimated" in str(quick).splitlines()[-1]


def test_mixed_widths_beat_a_uniform_one_of_the_same_size() -> None:
    """A residual net with a branch that adds little: few bits do for it."""
    model = residual()
    with torch.no_grad():
        model.b.weight.mul_(0.1)
    allocation = allocate_bits(model, X[:1], 4.0, method=Sensitivity(), data=[X], progress=False)

    def quality(config: Config) -> float:
        quantized = fxquant.quantize(model, [X], config=config, progress=False)
        with torch.no_grad():
            return signal_to_noise(model(X), quantized(X))

    uniform = allocate_bits(model, X[:1], 4.0, candidates=(4,), progress=False)
    assert allocation.size <= uniform.size and allocation.bits["b"] < 4
    assert quality(allocation.config) > quality(uniform.config) + 0.5


def test_the_front_has_no_dominated_allocation(tmp_path: Path) -> None:
    entry = BY_NAME["residual"]
    front = pareto_front(entry.make(), entry.inputs(), (3, 8, 4, 5, 4), progress=False)
    sizes, losses = [a.size for a in front], [a.loss for a in front]
    assert len(front) == 4 == len(str(front).splitlines()) - 1
    assert sizes == sorted(set(sizes)) and losses == sorted(set(losses), reverse=True)
    worse = ParetoFront.of([*front, front.allocations[0]])
    assert worse == front
    if importlib.util.find_spec("matplotlib") is not None:
        assert front.plot(tmp_path / "front.svg").stat().st_size > 0


def test_a_plot_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BY_NAME["residual"]
    front = pareto_front(entry.make(), entry.inputs(), (4,), progress=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        front.plot(tmp_path / "front.svg")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"average": 1.0}, "cannot be reached"),
        ({"average": math.nan}, "is no number"),
        ({"average": "4"}, "is no number"),
        ({"method": Sensitivity}, "is no method"),
        ({"candidates": (1, 4)}, "no weight widths"),
        ({"candidates": ()}, "no weight widths"),
        ({"budget": "time"}, "unknown"),
        ({"method": Sensitivity()}, "none was given"),
    ],
)
def test_bad_arguments(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allocated("residual", **wrong)


def test_networks_with_nothing_to_choose(x: Tensor = X) -> None:
    with pytest.raises(ConfigError, match="no layer"):
        allocate_bits(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)).eval(), x[:1])
