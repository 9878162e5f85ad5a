"""Elementwise operators: each becomes a table with the exact code for every input code.

Tables have 256 entries for 8-bit inputs and 65,536 for 16-bit inputs.

Any function of one value qualifies. The fx node keeps the torch function itself as target, with
its scalar parameters; add a row to `FUNCTIONS` for a new one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.numerics import reference
from fxquant.ops.clamp import Clamp
from fxquant.ops.opdef import Grid, Input, IntegerCall, OpDef, QuantCall


def clamp(x: Tensor, *, clamp: Clamp) -> Tensor:
    """relu, relu6, hardtanh and clamp: one operator, so that one fusion rule serves them all."""
    return x.clamp(clamp[0], clamp[1])


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU with slope `[1]` or `[C]` on axis 1."""
    return F.prelu(x, slope)


def affine(x: Tensor, *, scale: float, offset: float) -> Tensor:
    """`x * scale + offset` with scalars."""
    return x * scale + offset


def power(x: Tensor, *, exponent: float) -> Tensor:
    """`x ** exponent` with a scalar exponent."""
    return x**exponent


FUNCTIONS = (
    clamp,
    affine,
    power,
    F.leaky_relu,
    F.elu,
    F.selu,
    F.hardswish,
    F.silu,
    F.hardsigmoid,
    F.gelu,
    F.mish,
    F.softplus,
    F.logsigmoid,
    torch.sigmoid,
    torch.tanh,
    torch.abs,
    torch.exp,
    torch.square,
)


def table_codes(values: Tensor, call: QuantCall) -> Tensor:
    """Quantize the function's values at all input codes, `[..., L]`.

    A function without a value at a code that the input can take (NaN) gets the zero point.
    """
    assert call.output is not None
    ratio = torch.nan_to_num(torch.round(values / call.output.scale), nan=0.0)
    codes = ratio.clamp(-1e6, 1e6) + call.output.zero_point
    return codes.clamp(call.output.qmin, call.output.qmax).to(call.output.width.codes)


def _integer_table(function):
    def integer(call: QuantCall) -> IntegerCall:
        values = function(call.operand("x").codes(), **call.args)
        return IntegerCall(reference.lookup, (Input("x"), table_codes(values, call)))

    return integer


def _integer_prelu(call: QuantCall) -> IntegerCall:
    codes, slope = call.operand("x").codes(), call.args["slope"].double()
    values = torch.where(codes > 0, codes, codes * slope.reshape(-1, 1))  # [C, L]
    table = table_codes(values, call)
    return IntegerCall(reference.lookup, (Input("x"), table[0] if len(table) == 1 else table))


DEFS = (
    *(
        OpDef(function, Grid.OWN, ("x",), ("x",), _integer_table(function))
        for function in FUNCTIONS
    ),
    OpDef(prelu, Grid.OWN, ("x", "slope"), ("x",), _integer_prelu),
)
