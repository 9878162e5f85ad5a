"""requantize, add, mul and concat: every operand is moved from its own grid to the result's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxquant.numerics import reference
from fxquant.numerics.requantize import requant_from_real
from fxquant.ops.clamp import Clamp, apply_clamp
from fxquant.ops.opdef import Grid, Input, IntegerCall, OpDef, Operand, QuantCall


def requantize(x: Tensor) -> Tensor:
    """The same values, for a grid of their own."""
    return x.clone()


def add(a: Tensor, b: Tensor, *, clamp: Clamp | None = None) -> Tensor:
    """`clamp(a + b)`, shapes broadcast."""
    return apply_clamp(a + b, clamp)


def mul(a: Tensor, b: Tensor, *, clamp: Clamp | None = None) -> Tensor:
    """`clamp(a * b)`, shapes broadcast (squeeze-excite)."""
    return apply_clamp(a * b, clamp)


def concat(tensors: Sequence[Tensor], *, axis: int) -> Tensor:
    """Concatenate along `axis` (non-negative)."""
    return torch.cat(list(tensors), axis)


def _moves(operands: Sequence[Operand], output: Operand, name: str) -> dict[str, tuple[int, ...]]:
    """Zero points, multipliers and shifts that move each operand to the output grid."""
    real = torch.tensor([o.scale / output.scale for o in operands], dtype=torch.float64)
    requant = requant_from_real(real, name, output.width)
    return {
        "zero_points": tuple(o.zero_point for o in operands),
        "multipliers": tuple(requant.multiplier.tolist()),
        "shifts": tuple(requant.shift.tolist()),
    }


def _factor(real: float, call: QuantCall) -> dict[str, int]:
    """Multiplier and shift of one factor, and the result's grid."""
    assert call.output is not None
    factor = torch.tensor(real / call.output.scale, dtype=torch.float64)
    requant = requant_from_real(factor, call.name, call.output.width)
    return {
        "multiplier": int(requant.multiplier),
        "shift": int(requant.shift),
        **call.output.result(call.args.get("clamp")),
    }


def _integer_requantize(call: QuantCall) -> IntegerCall:
    x = call.operand("x")
    kwargs = {"zero_point": x.zero_point, **_factor(x.scale, call)}
    return IntegerCall(reference.requantize, (Input("x"),), kwargs)


def _integer_add(call: QuantCall) -> IntegerCall:
    assert call.output is not None
    call.check_sum("a", "b")
    moves = _moves([call.operand("a"), call.operand("b")], call.output, call.name)
    kwargs = {**moves, **call.output.result(call.args.get("clamp"))}
    return IntegerCall(reference.add, (Input("a"), Input("b")), kwargs)


def _integer_mul(call: QuantCall) -> IntegerCall:
    a, b = call.operand("a"), call.operand("b")
    kwargs = {"zero_points": (a.zero_point, b.zero_point), **_factor(a.scale * b.scale, call)}
    return IntegerCall(reference.mul, (Input("a"), Input("b")), kwargs)


def _integer_concat(call: QuantCall) -> IntegerCall:
    assert call.output is not None
    operands = call.inputs["tensors"]
    kwargs = {
        "axis": call.args["axis"],
        **_moves(operands, call.output, call.name),
        **call.output.result(),
    }
    inputs = tuple(Input("tensors", i) for i in range(len(operands)))
    return IntegerCall(reference.concat, (inputs,), kwargs)


DEFS = (
    OpDef(requantize, Grid.OWN, ("x",), ("x",), _integer_requantize),
    OpDef(add, Grid.OWN, ("a", "b"), ("a", "b"), _integer_add, clamps=True, summed=("a", "b")),
    OpDef(mul, Grid.OWN, ("a", "b"), ("a", "b"), _integer_mul, clamps=True),
    OpDef(concat, Grid.OWN, ("tensors",), ("tensors",), _integer_concat),
)
