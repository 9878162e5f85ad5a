"""Run one operator's integer form on given codes, and compare it with float torch.

The expected value is computed by the caller with plain torch functions in float64 on the
dequantized operands, so nothing of the project is on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.numerics.reference import dequantize_accumulator
from fxquant.numerics.types import (
    QParams,
    QTensor,
    activation_spec,
    qparams_from_range,
    weight_spec,
)
from fxquant.numerics.width import WIDTH_16
from fxquant.ops import OPS, Input, Operand, QuantCall
from tests.strategies import random_codes, random_weight
from tests.tolerance import ACCUMULATORS, assert_close, assert_within_lsb


@dataclass(frozen=True)
class Value:
    """Codes on a grid."""

    codes: Tensor
    grid: Operand

    @property
    def real(self) -> Tensor:
        """float64 values."""
        return (self.codes.double() - self.grid.zero_point) * self.grid.scale


def value(
    shape: tuple[int, ...], seed: int = 0, zero_point: int = 117, bits: int = 8, span: float = 4.0
) -> Value:
    """Random codes; the grid spans `span` real units."""
    qmax = (1 << bits) - 1
    scale = float(torch.tensor(span / qmax))
    grid = Operand(scale, min(zero_point, qmax), 0, qmax)
    return Value(random_codes(shape, seed, qmax), grid)


def weight(shape: tuple[int, ...], seed: int = 0, bits: int = 8) -> QTensor:
    """Random weight codes; channel scales differ by up to 8 times."""
    rng = torch.Generator().manual_seed(seed)
    scale = 0.01 * torch.exp2(3 * torch.rand(shape[0], generator=rng))
    zero_point = torch.zeros(shape[0], dtype=torch.int32)
    return QTensor(random_weight(shape, seed, bits), QParams(weight_spec(bits), scale, zero_point))


def grid_for(real: Tensor, bits: int = 8) -> Operand:
    """The grid that calibration on exactly these values gives."""
    low, high = torch.aminmax(real)
    return Operand.of(qparams_from_range(low, high, activation_spec(bits)))


def quantized(real: Tensor, grid: Operand) -> Tensor:
    """Nearest codes of float64 values."""
    codes = torch.round(real / grid.scale) + grid.zero_point
    return codes.clamp(grid.qmin, grid.qmax)


Operands = Mapping[str, Value | tuple[Value, ...]]


def run_integer(
    function: Callable[..., Any],
    operands: Operands,
    output: Operand | None,
    rank: int,
    weight: QTensor | None = None,
    **arguments: Any,
) -> Tensor:
    """Bind the operator to its grids as `integerize` does, and run it on codes.

    Args:
        function: The operator's float function.
        operands: Activation operands by parameter name.
        output: Grid of the result, None for floats from the accumulators.
        rank: Rank of the result.
        weight: Quantized weight.
        arguments: Static arguments, and float tensors such as a bias.
    """

    def grids(operand: Value | tuple[Value, ...]) -> Any:
        return operand.grid if isinstance(operand, Value) else tuple(v.grid for v in operand)

    inputs = {name: grids(v) for name, v in operands.items()}
    call = QuantCall("op", arguments, inputs, weight, output, rank)
    integer = OPS[function].integer(call)

    def resolve(argument: Any) -> Any:
        if isinstance(argument, Input):
            operand = operands[argument.name]
            if isinstance(operand, Value):
                return operand.codes
            assert argument.index is not None
            return operand[argument.index].codes
        if isinstance(argument, tuple):
            return [resolve(a) for a in argument]
        return argument

    result = integer.function(*[resolve(a) for a in integer.args], **integer.kwargs)
    if integer.float_output is None:
        assert output is not None and result.dtype == output.width.codes
        return result
    lower, upper = integer.float_output.clamp
    x = operands.get("x")
    wide = isinstance(x, Value) and x.grid.width is WIDTH_16
    assert result.dtype == (torch.int64 if wide else torch.int32)
    return dequantize_accumulator(
        result, integer.float_output.scale, axis=integer.float_output.axis, lower=lower, upper=upper
    )


def check(
    function: Callable[..., Any],
    operands: Operands,
    expected: Tensor,
    *,
    bits: int = 8,
    weight: QTensor | None = None,
    fraction: float = 0.05,
    grid: Operand | None = None,
    **arguments: Any,
) -> None:
    """Integer result within 1 LSB of the quantized float64 result, and equal almost everywhere.

    The two round differently (twice with integers, once in float64), so ties may differ. The
    grid of the result covers the expected values unless one is given.
    """
    grid = grid or grid_for(expected, bits)
    codes = run_integer(function, operands, grid, expected.ndim, weight, **arguments)
    where = getattr(function, "__name__", str(function))
    small = 4 / max(expected.numel(), 1)  # a handful of ties must not fail a tiny tensor
    assert_within_lsb(codes, quantized(expected, grid), 1, max(fraction, small), where)


def check_float_output(
    function: Callable[..., Any],
    operands: Operands,
    expected: Tensor,
    *,
    weight: QTensor | None = None,
    **arguments: Any,
) -> None:
    """Floats delivered from the accumulators equal the float64 result."""
    real = run_integer(function, operands, None, expected.ndim, weight, **arguments)
    assert_close(real, expected.float(), ACCUMULATORS)


def real_weight(w: QTensor) -> Tensor:
    """float64 weight."""
    scale = w.qparams.scale.double().reshape([-1] + [1] * (w.codes.ndim - 1))
    return w.codes.double() * scale


def bias_on_grid(x: Value, w: QTensor, largest: float) -> Tensor:
    """A float64 bias on the int32 grid `s_x * s_w`, as solvers deliver it."""
    step = w.qparams.scale.double() * x.grid.scale
    wanted = torch.linspace(-largest, largest, len(step), dtype=torch.float64)
    return torch.round(wanted / step) * step
