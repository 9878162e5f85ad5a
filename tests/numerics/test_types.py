"""Value types: what they refuse, and grids made from ranges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import ConfigError, NumericsError
from fxquant.numerics.types import (
    SMALLEST_SCALE,
    IntType,
    PerAxis,
    QParams,
    QTensor,
    QuantSpec,
    activation_spec,
    qparams_from_range,
    weight_spec,
)
from tests.strategies import BITS


@pytest.mark.parametrize(
    ("dtype", "low", "high", "text"),
    [
        (IntType(8), -128, 127, "s8"),
        (IntType(8, narrow=True), -127, 127, "s8n"),
        (IntType(8, signed=False), 0, 255, "u8"),
        (IntType(2, narrow=True), -1, 1, "s2n"),
        (IntType(3, signed=False), 0, 7, "u3"),
        (IntType(16), -32768, 32767, "s16"),
    ],
)
def test_int_type_range(dtype: IntType, low: int, high: int, text: str) -> None:
    assert (dtype.qmin, dtype.qmax, str(dtype)) == (low, high, text)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 15, 17, 32])
def test_int_type_refuses_widths(bits: int) -> None:
    with pytest.raises(ConfigError, match="not a supported width"):
        IntType(bits)


def test_int_type_and_spec_refuse_contradictions() -> None:
    with pytest.raises(ConfigError, match="cannot be narrow"):
        IntType(8, signed=False, narrow=True)
    with pytest.raises(ConfigError, match="symmetric grid needs a signed"):
        QuantSpec(IntType(8, signed=False), symmetric=True)


def test_specs_are_hashable_values() -> None:
    assert {weight_spec(4): 1}[weight_spec(4)] == 1
    assert weight_spec(4) != weight_spec(4, axis=1)
    assert weight_spec(4).granularity == PerAxis(0)


def _scalar(scale: float, zero_point: int, spec: QuantSpec | None = None) -> QParams:
    spec = spec or activation_spec(8)
    return QParams(spec, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-45, 1e-39])
def test_qparams_refuse_scale(scale: float) -> None:
    with pytest.raises(NumericsError, match="zero, subnormal, negative or not finite"):
        _scalar(scale, 0)


@pytest.mark.parametrize("zero_point", [-1, 256])
def test_qparams_refuse_zero_point(zero_point: int) -> None:
    with pytest.raises(NumericsError, match="outside"):
        _scalar(1.0, zero_point)


def test_qparams_refuse_shapes_and_dtypes() -> None:
    one, zero = torch.ones(3), torch.zeros(3, dtype=torch.int32)
    for scale, zero_point, spec in (
        (one.double(), zero, weight_spec(8)),
        (one, zero.long(), weight_spec(8)),
        (one, zero[:2], weight_spec(8)),
        (one, zero, activation_spec(8)),
        (one[0], zero[0], weight_spec(8)),
        (one, zero + 1, weight_spec(8)),
    ):
        with pytest.raises(NumericsError):
            QParams(spec, scale, zero_point)


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(finite, finite, BITS)
def test_range_represents_zero_and_covers(a: float, b: float, bits: int) -> None:
    low, high = min(a, b), max(a, b)
    q = qparams_from_range(torch.tensor(low), torch.tensor(high), activation_spec(bits))
    scale, zero_point, qmax = float(q.scale), int(q.zero_point), q.spec.dtype.qmax
    assert 0 <= zero_point <= qmax  # code of the real 0: exact
    # Ends are covered up to the half step that rounding the zero point costs.
    slack = 0.5 * scale * (1 + 1e-5)
    assert (qmax - zero_point) * scale >= max(high, 0.0) * (1 - 1e-6) - slack
    assert -zero_point * scale <= min(low, 0.0) * (1 - 1e-6) + slack


@given(st.lists(finite, min_size=1, max_size=5), BITS)
def test_symmetric_range_covers(values: list[float], bits: int) -> None:
    bounds = torch.tensor(values)
    q = qparams_from_range(-bounds.abs(), bounds.abs(), weight_spec(bits))
    assert bool((q.zero_point == 0).all())
    covered = q.scale.double() * q.spec.dtype.qmax
    assert bool((covered >= bounds.abs().double() * (1 - 1e-6)).all())


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, -1e-44])
@pytest.mark.parametrize("spec", [activation_spec(8), activation_spec(2)], ids=str)
def test_empty_and_subnormal_ranges_give_a_usable_grid(value: float, spec: QuantSpec) -> None:
    q = qparams_from_range(torch.tensor(min(value, 0.0)), torch.tensor(max(value, 0.0)), spec)
    assert float(q.scale) >= SMALLEST_SCALE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_range_refuses_non_finite(bad: float) -> None:
    low, high = (bad, 1.0) if bad < 0 else (0.0, bad)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        qparams_from_range(torch.tensor(low), torch.tensor(high), activation_spec(8))


def test_dequantize_broadcasts_along_the_axis() -> None:
    codes = torch.arange(-3, 3, dtype=torch.int8).reshape(2, 3)
    q = QParams(weight_spec(8, axis=1), torch.tensor([1.0, 2.0, 4.0]),
                torch.zeros(3, dtype=torch.int32))  # fmt: skip
    expected = torch.tensor([[-3.0, -4.0, -4.0], [0.0, 2.0, 8.0]])
    assert torch.equal(QTensor(codes, q).dequantize(), expected)
