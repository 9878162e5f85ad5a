"""Operators that move values: the reference functions serve floats and codes alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxquant.numerics import reference
from fxquant.ops.opdef import Grid, Input, IntegerCall, OpDef, QuantCall

reshape = reference.reshape
permute = reference.permute
slice_axis = reference.slice_axis
channel_shuffle = reference.channel_shuffle
pad = reference.pad
gather2d = reference.gather2d


def for_any_batch(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """The `shape` of a reshape from `old` to `new` that leaves the number of samples open."""
    if not old or not new:
        return new
    return (0 if old[0] == new[0] else -1, *new[1:])


def _unchanged(function: Callable[..., Any]) -> Callable[[QuantCall], IntegerCall]:
    def integer(call: QuantCall) -> IntegerCall:
        return IntegerCall(function, (Input("x"),), dict(call.args))

    return integer


def _integer_pad(call: QuantCall) -> IntegerCall:
    x = call.operand("x")
    value = min(max(x.code(call.args["value"]), x.qmin), x.qmax)
    return IntegerCall(pad, (Input("x"),), {"pads": call.args["pads"], "value": value})


DEFS = (
    *(
        OpDef(f, Grid.SHARED, ("x",), ("x",), _unchanged(f), moves=True)
        for f in (reshape, permute, slice_axis, channel_shuffle, gather2d)
    ),
    OpDef(pad, Grid.SHARED, ("x",), ("x",), _integer_pad),
)
