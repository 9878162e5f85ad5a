"""Room for sums: how fine the grid of a value may be without its terms saturating."""

from __future__ import annotations

import torch
from torch.fx import Node

from fxquant.ir import meta
from fxquant.numerics.types import QParams
from fxquant.numerics.width import width_of
from fxquant.ops import Operand

_MARGIN = 1.0001  # scales are float32


def finest_scale(node: Node) -> float:
    """Smallest scale of an integer operator's result, 0 if any will do.

    Terms of a sum are added on the grid of the result before the one rounding: each operand, and
    the accumulators of a layer with a residual (`meta.term`), must fit it although they may cancel.
    """
    summed = [Operand.of(meta.qparams(operand)) for operand in meta.summands(node)]
    quant = meta.quant(node)
    if not summed or quant is None:
        return 0.0
    width = width_of(quant.spec.dtype.bits)
    own = meta.term(node) / width.accumulator_steps
    return max([own] + [o.scale / width.largest_ratio(o.span) * _MARGIN for o in summed])


def with_headroom(node: Node, qparams: QParams) -> QParams:
    """The grid, coarsened to `finest_scale` if it is finer; the zero point stays."""
    finest = finest_scale(node)
    if float(qparams.scale) >= finest:
        return qparams
    return QParams(qparams.spec, torch.tensor(finest, dtype=torch.float32), qparams.zero_point)
