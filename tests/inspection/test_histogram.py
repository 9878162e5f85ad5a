"""Histograms on the codes of a grid."""

from __future__ import annotations

import pytest
import torch

from fxquant.inspection.histogram import Histogram, code_counts
from fxquant.inspection.measure import measure
from fxquant.ir import meta
from fxquant.numerics.types import IntType
from tests.inspection.nets import quantized_net, small_net


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("narrow", [False, True])
def test_even_codes_give_an_even_histogram(bits: int, narrow: bool) -> None:
    dtype = IntType(bits, signed=narrow, narrow=narrow)
    counts = code_counts(torch.arange(dtype.qmin, dtype.qmax + 1), dtype)
    assert counts[0] == counts[-1] == 0
    assert len(set(counts[1:-1].tolist())) == 1
    assert int(counts.sum()) == dtype.qmax - dtype.qmin + 1


def test_what_the_grid_cannot_hold_is_at_the_ends() -> None:
    counts = code_counts(torch.tensor([-9.0, -0.6, -0.4, 0.0, 3.4, 3.6, 99.0]), IntType(2, False))
    assert counts.tolist() == [2, 2, 0, 0, 1, 2]


def test_clipped_and_used_shares() -> None:
    histogram = Histogram((1, 0, 6, 0, 0, 3), (0, 1, 6, 0, 3, 0), (0.0, 3.0))
    assert histogram.clipped == pytest.approx(0.4)
    assert histogram.used == pytest.approx(0.25)
    assert Histogram((), (0, 1, 0), (0.0, 0.0)).clipped == 0
    assert Histogram((0, 5, 5, 5, 5, 0), (0,) * 6, (0.0, 3.0)).used == 1


def test_counts_of_a_network_are_those_of_its_values() -> None:
    model, x = small_net()
    quantized = quantized_net()
    found = measure(quantized, x, model)
    stem = found.values["stem"].values
    assert stem is not None
    assert sum(stem.before) == sum(stem.after) == len(x) * 8 * 6 * 6
    assert stem.after[0] == stem.after[-1] == 0
    grid = meta.qparams(next(n for n in quantized.calibrated.graph.nodes if n.name == "stem"))
    codes = torch.relu(model.stem(x)) / grid.scale + grid.zero_point
    assert list(stem.before) == code_counts(codes, grid.spec.dtype).tolist()


def test_float_weights_are_given_in_units_of_their_codes() -> None:
    model, x = small_net()
    quantized = quantized_net()
    weights = measure(quantized, x, model).weights
    node = next(n for n in quantized.calibrated.graph.nodes if n.name == "left_0")
    codes = meta.tensor_of(quantized.calibrated, node.args[1])
    assert float((weights["left_0"] - codes).abs().max()) < 2
    assert measure(quantized, x).weights == {}
