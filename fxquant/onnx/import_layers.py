"""Layers with weights, and pooling: what has a kernel and pads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant.onnx.reader import Importer, OnnxCall, OnnxReader, tensor

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
    mode, rank = call.attribute("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", "VALID"):
        flat = tuple(call.attribute("pads") or (0,) * (2 * rank)) if mode == "NOTSET" else ()
        flat = flat or (0,) * (2 * rank)
        return tuple((flat[i], flat[i + rank]) for i in range(rank))
    strides, dilations = (spread(call, name, rank) for name in ("strides", "dilations"))
    pads = []
    for size, k, s, d in zip(reader.shape(call, 0)[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return tuple(pads)


def padded(reader: OnnxReader, x: Node, pads: Pads, value: float) -> tuple[Node, tuple[int, ...]]:
    """The value with unequal pads applied, and the equal ones that are left."""
    if all(before == after for before, after in pads):
        return x, tuple(before for before, _ in pads)
    flat = [amount for pair in reversed(pads) for amount in pair]
    return reader.call(F.pad, x, flat, "constant", value), (0,) * len(pads)


def _weight(reader: OnnxReader, call: OnnxCall, kinds: dict[int, Any]) -> tuple[Any, np.ndarray]:
    weight = reader.constant(call, 1)
    rank = weight.ndim - 2
    if rank not in kinds:
        raise call.unsupported(f"the kernel has {rank} axes")
    return kinds[rank], weight


def _fill(module: nn.Module, weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in parameters.items():
        setattr(module, name, nn.Parameter(tensor(value), requires_grad=False))
    return module


def conv(reader: OnnxReader, call: OnnxCall) -> Node:
    """Conv with constant weights."""
    kind, weight = _weight(reader, call, _CONV)
    kernel, groups = weight.shape[2:], call.attribute("group", 1)
    x, padding = padded(reader, reader.operand(call, 0), pads_of(reader, call, kernel), 0.0)
    bias = reader.constant(call, 2)
    strides, dilations = (spread(call, n, len(kernel)) for n in ("strides", "dilations"))
    with torch.device("meta"):  # _fill brings the parameters
        module = kind(weight.shape[1] * groups, weight.shape[0], kernel, strides, padding,
                      dilations, groups, bias is not None)  # fmt: skip
    return reader.layer(call, _fill(module, weight, bias), x)


def conv_transpose(reader: OnnxReader, call: OnnxCall) -> Node:
    """ConvTranspose with constant weights; what is cropped less at the end is output padding."""
    kind, weight = _weight(reader, call, _TRANSPOSED)
    rank, groups = weight.ndim - 2, call.attribute("group", 1)
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
    if bias is not None:
        bias = np.broadcast_to(bias * call.attribute("beta", 1.0), (1, len(weight)))[0]
    scaled = weight * call.attribute("alpha", 1.0)
    return _linear(reader, call, scaled, bias, reader.operand(call, 0))


def matmul(reader: OnnxReader, call: OnnxCall) -> Node:
    """MatMul: a linear layer if the right operand is a constant matrix."""
    if reader.is_constant(call, 1) and reader.constant(call, 1).ndim == 2:
        return _linear(reader, call, reader.constant(call, 1).T, None, reader.operand(call, 0))
    return reader.call(torch.matmul, reader.operand(call, 0), reader.operand(call, 1))


def batch_norm(reader: OnnxReader, call: OnnxCall) -> Node:
    """BatchNormalization in inference."""
    weight, bias, mean, variance = (reader.constant(call, i) for i in range(1, 5))
    rank = len(reader.shape(call, 0))
    if rank not in _NORM or call.attribute("training_mode", 0):
        raise call.unsupported(f"its operand has rank {rank}, or it is in training mode")
    module = _NORM[rank](len(weight), eps=call.attribute("epsilon", 1e-5))
    module.running_mean, module.running_var = tensor(mean), tensor(variance)
    return reader.layer(call, _fill(module, weight, bias), reader.operand(call, 0))


def max_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """MaxPool without indices."""
    if len(call.outputs) > 1 and call.outputs[1]:
        raise call.unsupported("its indices are used")
    kernel = tuple(call.attribute("kernel_shape"))
    pads = pads_of(reader, call, kernel)
    x, padding = padded(reader, reader.operand(call, 0), pads, float("-inf"))
    strides, dilations = (spread(call, n, len(kernel)) for n in ("strides", "dilations"))
    ceil = bool(call.attribute("ceil_mode", 0))
    return reader.call(_MAX_POOL[len(kernel)], x, kernel, strides, padding, dilations, ceil)


def average_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """AveragePool."""
    kernel = tuple(call.attribute("kernel_shape"))
    pads, count = pads_of(reader, call, kernel), bool(call.attribute("count_include_pad", 0))
    unequal = any(before != after for before, after in pads)
    if (unequal and not count) or set(spread(call, "dilations", len(kernel))) != {1}:
        raise call.unsupported(f"its pads {pads} are unequal and not counted, or it is dilated")
    x, padding = padded(reader, reader.operand(call, 0), pads, 0.0)
    ceil = bool(call.attribute("ceil_mode", 0))
    strides = spread(call, "strides", len(kernel))
    return reader.call(_AVG_POOL[len(kernel)], x, kernel, strides, padding, ceil, count)


def global_average_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """GlobalAveragePool."""
    axes = tuple(range(2, len(reader.shape(call, 0))))
    return reader.call(torch.mean, reader.operand(call, 0), axes, True)


def global_max_pool(reader: OnnxReader, call: OnnxCall) -> Node:
    """GlobalMaxPool of an image."""
    if len(reader.shape(call, 0)) != 4:
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
