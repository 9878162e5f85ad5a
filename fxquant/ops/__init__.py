"""The operator vocabulary. `OPS` maps an fx target to its OpDef; all else stays in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxquant.ops import arithmetic, conv, elementwise, pool, shape
from fxquant.ops.opdef import Grid, Input, IntegerCall, OpDef, Operand, QuantCall

OPS: dict[Callable[..., Any], OpDef] = {
    definition.function: definition
    for family in (conv, arithmetic, elementwise, pool, shape)
    for definition in family.DEFS
}

__all__ = ["OPS", "Grid", "Input", "IntegerCall", "OpDef", "Operand", "QuantCall"]
