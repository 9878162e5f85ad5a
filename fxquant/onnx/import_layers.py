"""Layers with weights, and pooling: what has a kernel and pads."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant.onnx.call import OnnxCall
from fxquant.onnx.reader import Importer, OnnxReader, tensor

Pads = tuple[tuple[int, int], ...]  # (before, after) along every axis of the plane
_CONV = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
_MAX_POOL, _AVG_POOL = {1: F.max_pool1d, 2: F.max_pool2d}, {1: F.avg_pool1d, 2: F.avg_pool2d}


def spread(call: OnnxCall, name: str, rank: int) -> tuple[int, ...]:
    """A list attribute of a window, 1 along every axis by default."""
    value = tuple(call.attribute(name) or (1,) * rank)
    if len(value) != rank:
        raise call.unsupported(f"{name} has {len(value)} entries for {rank} axes")
    return value


def pads_of(reader: OnnxReader, call: OnnxCall, kernel: Sequence[int]) -> Pads:
    """Pads of a window, explicit or computed from `auto_pad`."""
    mode, rank, flat = call.attribute("auto_pad", "NOTSET"), len(kernel), call.attribute("pads")
    if mode in ("NOTSET", "VALID"):
        flat = flat if flat and mode == "NOTSET" else (0,) * (2 * rank)
        return tuple((flat[i], flat[i + rank]) for i in range(rank))
    strides, dilations = (spread(call, name, rank) for name in ("strides", "dilations"))
    pads = []
    for size, k, s, d in zip(reader.shape(call, 0)[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return tuple(pads)


def padded(
    reader: OnnxReader, x: Node, pads: Pads, value: float, most: Sequence[float]
) -> tuple[Node, tuple[int, ...]]:
    """The value with pads applied that are unequal or more than a layer takes; those it is left."""
    if all(before == after <= limit for (before, after), limit in zip(pads, most, strict=True)):
        return x, tuple(before for before, _ in pads)
    flat = [amount for pair in reversed(pads) for amount in pair]
    return reader.call(F.pad, x, flat, "constant", value), (0,) * len(pads)


def _kind(call: OnnxCall, kinds: dict[int, Any], rank: int) -> Any:
    if rank not in kinds:
        raise call.unsupported(f"the kernel has {rank} axes")
    return kinds[rank]


def _fill(module: nn.Module, weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in parameters.items():
        setattr(module, name, nn.Parameter(tensor(value), requires_grad=False))
    return module


def conv(reader: OnnxReader, call: OnnxCall) -> Node:
    """Conv with constant weights."""
    weight, groups = reader.constant(call, 1), call.attribute("group", 1)
    kernel, kind = weight.shape[2:], _kind(call, _CONV, weight.ndim - 2)
    pads, most = pads_of(reader, call, kernel), (math.inf,) * len(kernel)
    x, padding = padded(reader, reader.operand(call, 0), pads, 0.0, most)
    bias = reader.constant(call, 2)
    strides, dilations = (spread(call, n, len(kernel)) for n in ("strides", "dilations"))
    with torch.device("meta"):  # _fill brings the parameters
        module = kind(weight.shape[1] * groups, weight.shape[0], kernel, strides, padding,
                      dilations, groups, bias is not None)  # fmt: skip
    return reader.layer(call, _fill(module, weight, bias), x)


def conv_transpose(reader: OnnxReader, call: OnnxCall) -> Node:
    """ConvTranspose with constant weights; what is cropped less at the end is output padding."""
    weight, groups = reader.constant(call, 1), call.attribute("group", 1)
    rank, kind = weight.ndim - 2, _kind(call, _TRANSPOSED, weight.ndim - 2)
    pads = pads_of(reader, call, weight.shape[2:])
    if call.attribute("output_shape") or call.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise call.unsupported("its pads follow from the result's shape")
    strides, dilations = (spread(call, n, rank) for n in ("strides", "dilations"))
    given = call.attribute("output_padding") or (0,) * rank
    extra = tuple(e + before - after for e, (before, after) in zip(given, pads, strict=True))
    limits = map(max, strides, dilations)
    if not all(0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
        raise call.unsupported(f"its pads {pads} differ too much")
    bias = reader.constant(call, 2)
    with torch.device("meta"):
        module = kind(weight.shape[0], weight.shape[1] * groups, weight.shape[2:], strides,
                      tuple(p for p, _ in pads), extra, groups, bias is not None,
                      dilations)  # fmt: skip
    return reader.layer(call, _fill(module, weight, bias), reader.operand(call, 0))


def _linear(reader: OnnxReader, call: OnnxCall, weight: Any, bias: Any, x: Node) -> Node:
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return reader.layer(call, _fill(module, weight, bias), x)


def gemm(reader: OnnxReader, call: OnnxCall) -> Node:
    """Gemm with a constant matrix: a linear layer."""
    weight, bias = reader.constant(call, 1), reader.constant(call, 2)
    if call.attribute("transA", 0):
        raise call.unsupported("it transposes its input")
    weight = weight if call.attribute("transB", 0) else weight.T
    weight = weight * call.attribute("alpha", 1.0)
    x, beta = reader.operand(call, 0), call.attribute("beta", 1.0)
    if bias is not None and bias.shape[:-1] not in ((), (1,)):  # not the same in every row
        product = _linear(reader, call, weight, None, x)
        return reader.call(operator.add, product, reader.buffer(call.inputs[2], bias * beta))
    if bias is not None:
        bias = np.broadcast_to(bias * beta, (1, len(weight)))[0]
    return _linear(reader, call, weight, bias, x)


def matmul(reader: OnnxReader, call: OnnxCall) -> Node:
    """MatMul: a linear layer if the right operand is a constant matrix."""
    if reader.is_constant(call, 1) and reader.constant(call, 1).ndim == 2:
        return _linear(reader, call, reader.constant(call, 1).T, None, reader.operand(call, 0))
    return reader.call(torch.matmul, reader.operand(call, 0), reader.operand(call, 1))


def batch_norm(reader: OnnxReader, call: OnnxCall) -> Node:
    """BatchNormalization in inference."""
    weight, bias, mean, variance = (reader.constant(call, i) for i in range(1, 5))
    rank = reader.rank(call, 0)
    if rank not in _NORM or call.attribute("training_mode", 0):
        raise call.unsupported(f"its operand has rank {rank}, or it is in training mode")
    module = _NORM[rank](len(weight), eps=call.attribute("epsilon", 1e-5))
    module.running_mean, module.running_var = tensor(mean), tensor(variance)
    return reader.layer(call, _fill(module, weight, bias), reader.operand(call, 0))


def _windows(reader: OnnxReader, call: OnnxCall, outside: float) -> tuple[Node, list[Any], bool]:
    """Operand of a pooling, its kernel, strides and pads, and its `ceil_mode`."""
    kernel, operand = tuple(call.attribute("kernel_shape")), reader.operand(call, 0)
    strides, pads = spread(call, "strides", len(kernel)), pads_of(reader, call, kernel)
    x, padding = padded(reader, operand, pads, outside, tuple(k // 2 for k in kernel))
    ceil = bool(call.attribute("ceil_mode", 0))
    if ceil and x is not operand:
        dilations = spread(call, "dilations", len(kernel))
        axes = zip(reader.shape(call, 0)[2:], kernel, strides, dilations, pads, strict=True)
        if any(_starts_behind(*axis) for axis in axes):
            raise call.unsupported("its last window starts in the pads that follow")
    return x, [kernel, strides, padding], ceil


def _starts_behind(size: int, k: int, s: int, d: int, pads: tuple[int, int]) -> bool:
    """Whether `ceil_mode` makes a window of padding only, which ONNX leaves out."""
    before, after = pads
    last = -(-(before + size + after - (k - 1) * d - 1) // s) * s
    return last >= before + size


def max_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """MaxPool without indices."""
    if len(call.outputs) > 1 and call.outputs[1]:
        raise call.unsupported("its indices are used")
    x, windows, ceil = _windows(reader, call, -math.inf)
    rank = len(windows[0])
    pool, dilations = _kind(call, _MAX_POOL, rank), spread(call, "dilations", rank)
    return reader.call(pool, x, *windows, dilations, ceil)


def average_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """AveragePool."""
    x, windows, ceil = _windows(reader, call, 0.0)
    rank, count = len(windows[0]), bool(call.attribute("count_include_pad", 0))
    if x is not reader.operand(call, 0) and not count:
        raise call.unsupported("its pads are unequal or over half of its kernel, and not counted")
    if set(spread(call, "dilations", rank)) != {1}:
        raise call.unsupported("it is dilated")
    return reader.call(_kind(call, _AVG_POOL, rank), x, *windows, ceil, count)


def global_average_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """GlobalAveragePool."""
    axes = tuple(range(2, reader.rank(call, 0)))
    return reader.call(torch.mean, reader.operand(call, 0), axes, True)


def global_max_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """GlobalMaxPool of an image."""
    if reader.rank(call, 0) != 4:
        raise call.unsupported("its operand is no image")
    return reader.call(F.adaptive_max_pool2d, reader.operand(call, 0), 1)


def local_response_norm(reader: OnnxReader, call: OnnxCall) -> Node:
    """LRN."""
    names = (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    parameters = [call.attribute(name, default) for name, default in names]
    x = reader.operand(call, 0)
    return reader.call(F.local_response_norm, x, call.attribute("size"), *parameters)


IMPORTERS: dict[str, Importer] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "LRN": local_response_norm,
}
