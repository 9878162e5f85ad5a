"""Per-layer errors: what is compared with what, and that faults show at the right place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import CalibrationError, ConfigError
from fxquant.inspection import LayerError, layer_errors
from fxquant.ir import meta
from fxquant.numerics.types import QParams
from tests.inspection.nets import quantized_net, small_net


def errors_of(quantized: fxquant.Quantized, model: nn.Module | None) -> Mapping[str, LayerError]:
    _, x = small_net()
    return {e.node: e for e in layer_errors(quantized, x, model)}


def test_every_value_is_listed_in_execution_order() -> None:
    quantized = quantized_net()
    names = [
        n.name for n in quantized.calibrated.graph.nodes if n.op in ("placeholder", "call_function")
    ]
    model, x = small_net()
    assert [e.node for e in layer_errors(quantized, x, model)] == names


def test_cumulative_error_is_that_of_the_qdq_graph() -> None:
    quantized = quantized_net()
    model, x = small_net()
    with torch.no_grad():
        original, result = model(x).double(), quantized.graph_module(x).double()
    noise = (original - result).square().sum()
    expected = float(10 * torch.log10(original.square().sum() / noise))
    last = layer_errors(quantized, x, model)[-1]
    assert last.cumulative.sqnr == pytest.approx(expected, abs=1e-3)
    assert 0.99 < last.cumulative.cosine <= 1


def test_fewer_bits_give_larger_errors() -> None:
    model, _ = small_net()
    fine, coarse = (errors_of(quantized_net(c), model) for c in (fxquant.W8A8, fxquant.W4A4))
    inner = "left_0"
    assert fine[inner].isolated.sqnr > coarse[inner].isolated.sqnr + 10


def test_weight_errors_show_only_with_the_float_model() -> None:
    quantized = quantized_net(fxquant.W2A8)
    model, _ = small_net()
    with_weights, without = errors_of(quantized, model), errors_of(quantized, None)
    assert with_weights["left_0"].isolated.sqnr < 15 < without["left_0"].isolated.sqnr


def test_a_spoiled_grid_shows_in_its_own_isolated_error_and_in_all_later_cumulative_ones() -> None:
    quantized = quantized_net()
    model, _ = small_net()
    sound = errors_of(quantized, model)
    node = next(n for n in quantized.calibrated.graph.nodes if n.name == "left_0")
    value = meta.quant(node)
    assert value is not None and value.qparams is not None
    wrong = QParams(value.spec, value.qparams.scale * 0.1, value.qparams.zero_point)
    meta.set_quant(node, meta.TensorQuant(value.spec, wrong, value.origin))
    spoiled = errors_of(fxquant.Quantized(quantized.calibrated), model)
    names = list(sound)
    place = names.index("left_0")
    changed = [n for n in names if spoiled[n].isolated.sqnr < sound[n].isolated.sqnr - 6]
    assert changed == ["left_0", names[place + 1]]  # the operator and the one that reads its grid
    assert all(spoiled[n] == sound[n] for n in names[:place])
    assert spoiled[names[-1]].cumulative.sqnr < sound[names[-1]].cumulative.sqnr - 6


def test_float_islands_are_exact_in_isolation() -> None:
    quantized = quantized_net(fxquant.W8A8.with_rules(names={"head": None}))
    model, _ = small_net()
    assert errors_of(quantized, model)["head"].isolated.sqnr > 30
    assert math.isinf(errors_of(quantized, None)["head"].cumulative.sqnr) is False


def test_samples_are_limited_and_batches_do_not_matter() -> None:
    quantized = quantized_net()
    model, x = small_net()
    whole = layer_errors(quantized, x[:5], model)
    parts = layer_errors(quantized, [x[:2], x[2:4], x[4:6]], model, samples=5)
    for a, b in zip(whole, parts, strict=True):
        assert a.cumulative.sqnr == pytest.approx(b.cumulative.sqnr, abs=0.01)


def test_inspection_measures_on_as_many_inputs_as_asked_for() -> None:
    quantized = quantized_net()
    model, x = small_net()
    found = fxquant.inspect(quantized, x, model=model, samples=5)
    expected = {e.node: e.isolated for e in layer_errors(quantized, x[:5], model)}
    measured = [layer.measured for layer in found.layers if layer.measured is not None]
    assert {m.node: m.isolated for m in measured} == expected


def test_no_data_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no data"):
        layer_errors(quantized_net(), [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x[:, :, 1:], "has shape"),
        (lambda x: x * math.nan, "NaN"),
        (lambda x: [(x[0],)], "has shape"),
        (lambda x: x[:0], "no data"),
    ],
    ids=["size", "nan", "rank", "empty"],
)
def test_data_that_cannot_be_measured_on(bad: Callable[[torch.Tensor], Any], message: str) -> None:
    _, x = small_net()
    with pytest.raises(CalibrationError, match=message):
        fxquant.inspect(quantized_net(), bad(x))


def test_what_cannot_be_inspected() -> None:
    model, x = small_net()
    for thing in (model, fxquant.prepare(model, x[:1])):
        with pytest.raises(ConfigError, match=r"fxquant\.convert"):
            fxquant.inspect(thing)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compiled network is 3"):
        fxquant.inspect(quantized_net(), compiled=3)  # type: ignore[arg-type]


def test_another_model_is_an_error() -> None:
    _, x = small_net()
    with pytest.raises(ConfigError, match="not the model that was quantized"):
        layer_errors(quantized_net(), x, nn.Sequential(nn.Conv2d(3, 4, 1)))
