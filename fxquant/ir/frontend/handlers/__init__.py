"""Handlers: torch operator name -> dialect calls. One row an operator, one file a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxquant.ir.frontend.handlers import activation, arithmetic, conv, pool, shape

HANDLERS: dict[str, Callable[..., Any]] = {
    **conv.HANDLERS,
    **activation.HANDLERS,
    **arithmetic.HANDLERS,
    **pool.HANDLERS,
    **shape.HANDLERS,
}

__all__ = ["HANDLERS"]
