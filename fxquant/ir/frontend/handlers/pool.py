"""Pooling, means over the plane, resizing and LRN. Windows are worked out here, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from fxquant.ir.frontend.call import Call
from fxquant.ir.frontend.handlers.conv import IntOrPair, pair
from fxquant.ir.meta import shape_of
from fxquant.numerics.reference.pool import Windows
from fxquant.ops import pool as ops
from fxquant.ops import shape as shape_ops


def windows(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Windows, tuple[int, ...]]:
    """Clipped windows along one axis, and how many taps each has inside the padded tensor."""
    spans, counts = [], []
    for i in range(out):
        taps = range(i * stride - padding, i * stride - padding + kernel * dilation, dilation)
        inside = [t for t in taps if 0 <= t < size]
        spans.append((inside[0], inside[-1] + 1, dilation))
        counts.append(sum(t < size + padding for t in taps))
    return tuple(spans), tuple(counts)


def adaptive_windows(size: int, out: int) -> Windows:
    """torch's adaptive pooling: `floor(i*size/out) .. ceil((i+1)*size/out)`."""
    return tuple((i * size // out, -(-(i + 1) * size // out), 1) for i in range(out))


def _is_image(x: Node) -> bool:
    return len(shape_of(x)) == 4


def max_pool2d(
    call: Call,
    input: Node,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """aten::max_pool2d."""
    if return_indices or not _is_image(input):
        return NotImplemented
    kernel, pads, dil = pair(kernel_size), pair(padding), pair(dilation)
    steps = kernel if stride is None or stride == [] else pair(stride)
    return _max_pool(call, input, call.out_shape[2:], kernel, steps, pads, dil)


def _max_pool(call: Call, x: Node, out: Any, kernel: Any, stride: Any, pads: Any, dil: Any) -> Node:
    axes = zip(shape_of(x)[2:], out, kernel, stride, pads, dil, strict=True)
    rows, cols = (windows(*axis)[0] for axis in axes)
    return call.emit(ops.max_pool2d, x, rows=rows, cols=cols)


def max_pool1d(
    call: Call,
    input: Node,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """aten::max_pool1d over one row."""
    if return_indices or len(shape_of(input)) != 3:
        return NotImplemented
    n, c, length = shape_of(input)
    kernel = pair(kernel_size)[0]
    step = kernel if stride is None or stride == [] else pair(stride)[0]
    x = call.reshape(input, (n, c, 1, length))
    y = _max_pool(call, x, (1, call.out_shape[2]), (1, kernel), (1, step),
                  (0, pair(padding)[0]), (1, pair(dilation)[0]))  # fmt: skip
    return call.reshape(y, call.out_shape)


def _avg_pool(
    call: Call, x: Node, out: Any, kernel: Any, stride: Any, pads: Any, include: bool, divisor: Any
) -> Node:  # fmt: skip
    axes = list(zip(shape_of(x)[2:], out, kernel, stride, pads, (1, 1), strict=True))
    (rows, row_counts), (cols, col_counts) = (windows(*axis) for axis in axes)
    if not include:
        row_counts, col_counts = (tuple(len(range(*w)) for w in ws) for ws in (rows, cols))
    if divisor:
        row_counts, col_counts = (divisor,) * len(rows), (1,) * len(cols)
    return call.emit(ops.avg_pool2d, x, rows=rows, cols=cols, row_counts=row_counts,
                     col_counts=col_counts)  # fmt: skip


def avg_pool2d(
    call: Call,
    input: Node,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """aten::avg_pool2d."""
    if not _is_image(input):
        return NotImplemented
    kernel = pair(kernel_size)
    steps = kernel if stride is None or stride == [] else pair(stride)
    return _avg_pool(call, input, call.out_shape[2:], kernel, steps, pair(padding),
                     count_include_pad, divisor_override)  # fmt: skip


def avg_pool1d(
    call: Call,
    input: Node,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """aten::avg_pool1d over one row."""
    if len(shape_of(input)) != 3:
        return NotImplemented
    n, c, length = shape_of(input)
    kernel = pair(kernel_size)[0]
    step = kernel if stride is None or stride == [] else pair(stride)[0]
    x = call.reshape(input, (n, c, 1, length))
    y = _avg_pool(call, x, (1, call.out_shape[2]), (1, kernel), (1, step),
                  (0, pair(padding)[0]), count_include_pad, None)  # fmt: skip
    return call.reshape(y, call.out_shape)


def _adaptive(call: Call, x: Node, out: tuple[int, int], average: bool) -> Node:
    h, w = shape_of(x)[2:]
    rows, cols = adaptive_windows(h, out[0]), adaptive_windows(w, out[1])
    if not average:
        return call.emit(ops.max_pool2d, x, rows=rows, cols=cols)
    counts = [tuple(len(range(*s)) for s in spans) for spans in (rows, cols)]
    return call.emit(ops.avg_pool2d, x, rows=rows, cols=cols, row_counts=counts[0],
                     col_counts=counts[1])  # fmt: skip


def adaptive_avg_pool2d(call: Call, input: Node, output_size: Any) -> Any:
    """aten::adaptive_avg_pool2d."""
    if not _is_image(input):
        return NotImplemented
    return _adaptive(call, input, (call.out_shape[2], call.out_shape[3]), average=True)


def adaptive_max_pool2d(
    call: Call, input: Node, output_size: Any, return_indices: bool = False
) -> Any:
    """F.adaptive_max_pool2d without indices."""
    if isinstance(call.recorded, tuple) or not _is_image(input):  # aten's always has indices
        return NotImplemented
    return _adaptive(call, input, (call.out_shape[2], call.out_shape[3]), average=False)


def adaptive_avg_pool1d(call: Call, input: Node, output_size: Any) -> Any:
    """aten::adaptive_avg_pool1d over one row."""
    if len(shape_of(input)) != 3:
        return NotImplemented
    n, c, length = shape_of(input)
    x = call.reshape(input, (n, c, 1, length))
    return call.reshape(_adaptive(call, x, (1, call.out_shape[2]), True), call.out_shape)


def _over_plane(x: Node, dim: Any) -> bool:
    """Whether a reduction takes the rows and columns of an image, and nothing else."""
    axes = (dim,) if isinstance(dim, int) else tuple(dim or ())
    return _is_image(x) and {a % 4 for a in axes} == {2, 3}


def mean(call: Call, input: Node, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """Mean over the plane of an image is global average pooling; other means stay in float."""
    if not _over_plane(input, dim) or dtype:
        return NotImplemented
    return call.reshape(_adaptive(call, input, (1, 1), average=True), call.out_shape)


def amax(call: Call, input: Node, dim: Any = (), keepdim: bool = False) -> Any:
    """Maximum over the plane of an image; other maxima stay in float."""
    if not _over_plane(input, dim):
        return NotImplemented
    return call.reshape(_adaptive(call, input, (1, 1), average=False), call.out_shape)


def interpolate(
    call: Call,
    input: Node,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """F.interpolate, nearest and bilinear."""
    if not _is_image(input) or antialias:
        return NotImplemented
    factors = (None, None)
    if scale_factor is not None and size is None and not recompute_scale_factor:
        sf = scale_factor
        factors = (sf, sf) if isinstance(sf, int | float) else (sf[0], sf[1])
    return _resize(call, input, mode, bool(align_corners), factors)


def _resize(call: Call, x: Node, mode: str, align: bool, factors: tuple[Any, Any]) -> Any:
    axes = list(zip(shape_of(x)[2:], call.out_shape[2:], factors, strict=True))
    if mode == "nearest":
        rows, cols = (_nearest(*axis) for axis in axes)
        return call.emit(shape_ops.gather2d, x, rows=rows, cols=cols)
    if mode == "bilinear":
        rows, cols = (_linear(*axis, align) for axis in axes)
        return call.emit(ops.resize_linear2d, x, rows=rows, cols=cols)
    return NotImplemented


def _step(size: int, out: int, factor: float | None) -> float:
    return 1.0 / factor if factor else size / out


def _nearest(size: int, out: int, factor: float | None) -> tuple[int, ...]:
    """torch's "nearest": `floor(i * step)`, in float32 like torch."""
    step = torch.tensor(_step(size, out, factor), dtype=torch.float32)
    index = torch.floor(torch.arange(out, dtype=torch.float32) * step).to(torch.int64)
    return tuple(index.clamp(max=size - 1).tolist())


def _linear(
    size: int, out: int, factor: float | None, align: bool
) -> tuple[tuple[int, int, float], ...]:
    """Two taps and the second one's weight for each output index."""
    taps = []
    for i in range(out):
        if align:
            position = i * (size - 1) / (out - 1) if out > 1 else 0.0
        else:
            position = max((i + 0.5) * _step(size, out, factor) - 0.5, 0.0)
        low = min(math.floor(position), size - 1)
        taps.append((low, min(low + 1, size - 1), position - low))
    return tuple(taps)


def upsample_nearest2d(call: Call, input: Node, output_size: Any, *scales: Any) -> Any:
    """aten::upsample_nearest2d, `.default` and `.vec`."""
    return _resize(call, input, "nearest", False, _aten_factors(scales))


def upsample_bilinear2d(
    call: Call, input: Node, output_size: Any, align_corners: bool, *scales: Any
) -> Any:
    """aten::upsample_bilinear2d."""
    return _resize(call, input, "bilinear", align_corners, _aten_factors(scales))


def _aten_factors(scales: Sequence[Any]) -> tuple[Any, Any]:
    flat = [s for item in scales if item is not None
            for s in (item if isinstance(item, list | tuple) else [item])]  # fmt: skip
    return (flat[0], flat[1]) if len(flat) == 2 else (None, None)


def local_response_norm(
    call: Call, input: Node, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """F.local_response_norm; only beta = 3/4 has an exact integer form."""
    if beta != 0.75 or alpha <= 0 or k <= 0 or not _is_image(input):
        return NotImplemented
    return call.emit(ops.local_response_norm, input, size=size, alpha=alpha, beta=beta, k=k)


HANDLERS = {
    "max_pool1d": max_pool1d,
    "max_pool2d": max_pool2d,
    "_max_pool2d": max_pool2d,
    "_max_pool1d": max_pool1d,
    "avg_pool1d": avg_pool1d,
    "avg_pool2d": avg_pool2d,
    "adaptive_avg_pool1d": adaptive_avg_pool1d,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "adaptive_max_pool2d": adaptive_max_pool2d,
    "mean": mean,
    "amax": amax,
    "interpolate": interpolate,
    "upsample_nearest2d": upsample_nearest2d,
    "upsample_bilinear2d": upsample_bilinear2d,
    "local_response_norm": local_response_norm,
}
