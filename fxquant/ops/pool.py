"""Pooling, resizing and local response normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.numerics import reference
from fxquant.numerics.reference.pool import Windows, resize_bits
from fxquant.numerics.requantize import requant_from_real
from fxquant.ops.opdef import FloatOutput, Grid, Input, IntegerCall, OpDef, QuantCall

max_pool2d = reference.max_pool2d

Taps = tuple[tuple[int, int, float], ...]


def avg_pool2d(
    x: Tensor,
    *,
    rows: Windows,
    cols: Windows,
    row_counts: tuple[int, ...],
    col_counts: tuple[int, ...],
) -> Tensor:
    """Average pooling over windows (see numerics/reference/pool.py).

    Args:
        x: `[N, C, H, W]`.
        rows: Windows along H.
        cols: Windows along W.
        row_counts: Divisor of each output row; the divisor of (i, j) is the product.
        col_counts: Divisor of each output column.
    """
    by_col = torch.stack([x[..., slice(*w)].sum(-1) for w in cols], -1)
    sums = torch.stack([by_col[:, :, slice(*w), :].sum(-2) for w in rows], -2)
    counts = torch.outer(torch.tensor(row_counts), torch.tensor(col_counts))
    return sums / counts.to(x.device, x.dtype)


def resize_linear2d(x: Tensor, *, rows: Taps, cols: Taps) -> Tensor:
    """Separable linear interpolation, `y_i = (1-w)*x[i0] + w*x[i1]` for `(i0, i1, w)`."""

    def taps(table: Taps) -> tuple[Tensor, Tensor, Tensor]:
        i0, i1, w = zip(*table, strict=True)
        index = {"dtype": torch.int64, "device": x.device}
        return (torch.tensor(i0, **index), torch.tensor(i1, **index),
                torch.tensor(w, dtype=x.dtype, device=x.device))  # fmt: skip

    i0, i1, w = taps(rows)
    x = x[:, :, i0] * (1 - w).reshape(-1, 1) + x[:, :, i1] * w.reshape(-1, 1)
    i0, i1, w = taps(cols)
    return x[..., i0] * (1 - w) + x[..., i1] * w


def local_response_norm(x: Tensor, *, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """torch's local response normalization."""
    return F.local_response_norm(x, size, alpha, beta, k)


def _integer_max_pool2d(call: QuantCall) -> IntegerCall:
    kwargs = {"rows": call.args["rows"], "cols": call.args["cols"]}
    return IntegerCall(reference.max_pool2d, (Input("x"),), kwargs)


def _integer_avg_pool2d(call: QuantCall) -> IntegerCall:
    x = call.operand("x")
    counts = torch.outer(
        torch.tensor(call.args["row_counts"], dtype=torch.float64),
        torch.tensor(call.args["col_counts"], dtype=torch.float64),
    )
    kwargs = {"rows": call.args["rows"], "cols": call.args["cols"], "zero_point": x.zero_point}
    if call.output is None:
        output = FloatOutput((x.scale / counts[0, :1]).float(), 1, (None, None))
        return IntegerCall(reference.avg_pool2d_accumulate, (Input("x"),), kwargs, output)
    out = call.output
    requant = requant_from_real(x.scale / (counts * out.scale), call.name, out.width)
    kwargs |= out.result()
    return IntegerCall(
        reference.avg_pool2d, (Input("x"), requant.multiplier, requant.shift), kwargs
    )


def _integer_resize(call: QuantCall) -> IntegerCall:
    x = call.operand("x")
    one = 1 << resize_bits(x.width)

    def fixed(taps: Taps) -> tuple[tuple[int, int, int], ...]:
        return tuple((i0, i1, round(w * one)) for i0, i1, w in taps)

    kwargs = {
        "rows": fixed(call.args["rows"]),
        "cols": fixed(call.args["cols"]),
        "zero_point": x.zero_point,
        "qmin": x.qmin,
        "qmax": x.qmax,
    }
    return IntegerCall(reference.resize_linear2d, (Input("x"),), kwargs)


def _integer_lrn(call: QuantCall) -> IntegerCall:
    assert call.output is not None
    x, size = call.operand("x"), call.args["size"]
    per_square = call.args["alpha"] / size * x.scale**2
    kwargs = {
        "size": size,
        "zero_point": x.zero_point,
        "offset": float(torch.tensor(call.args["k"] / per_square).float()),
        "factor": float(torch.tensor(x.scale / call.output.scale * per_square**-0.75).float()),
        **call.output.result(),
    }
    return IntegerCall(reference.local_response_norm, (Input("x"),), kwargs)


def _uniform(args) -> bool:
    return len(set(args["row_counts"])) == 1 and len(set(args["col_counts"])) == 1


DEFS = (
    OpDef(max_pool2d, Grid.SHARED, ("x",), ("x",), _integer_max_pool2d, moves=True),
    OpDef(avg_pool2d, Grid.OWN, ("x",), ("x",), _integer_avg_pool2d, accumulates=_uniform),
    OpDef(resize_linear2d, Grid.SHARED, ("x",), ("x",), _integer_resize),
    OpDef(local_response_norm, Grid.OWN, ("x",), ("x",), _integer_lrn),
)
