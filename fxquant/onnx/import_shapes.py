"""Operators that move values, and reductions to a smaller shape."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fxquant.onnx.call import OnnxCall
from fxquant.onnx.reader import Importer, OnnxReader

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
_CENTRED = ("half_pixel", "pytorch_half_pixel")
_WHOLE = 1e-6


def _integers(reader: OnnxReader, call: OnnxCall, position: int, name: str) -> list[int] | None:
    """Integers that newer operator sets have as an operand, older ones as an attribute."""
    value = reader.constant(call, position)
    if value is None:
        value = call.attribute(name)
    return None if value is None else [int(v) for v in value]


def reshape(reader: OnnxReader, call: OnnxCall) -> Node:
    """Reshape to a constant shape; 0 keeps a size."""
    x, shape = reader.operand(call, 0), _integers(reader, call, 1, "shape")
    if shape is None or call.attribute("allowzero", 0):
        raise call.unsupported("its shape is absent, or 0 stands for an empty axis")
    sizes = [reader.call("size", x, i) if d == 0 else d for i, d in enumerate(shape)]
    return reader.call("reshape", x, tuple(sizes))


def flatten(reader: OnnxReader, call: OnnxCall) -> Node:
    """Flatten to a matrix."""
    x, axis = reader.operand(call, 0), call.attribute("axis", 1)
    shape = reader.shape(call, 0)
    axis = axis % len(shape) if axis < 0 else axis
    if axis == 1:
        return reader.call(torch.flatten, x, 1)
    return reader.call("reshape", x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def transpose(reader: OnnxReader, call: OnnxCall) -> Node:
    """Transpose by a permutation, which reverses the axes by default."""
    rank = reader.rank(call, 0)
    order = tuple(call.attribute("perm") or reversed(range(rank)))
    return reader.call(torch.permute, reader.operand(call, 0), order)


def squeeze(reader: OnnxReader, call: OnnxCall) -> Node:
    """Drop axes of size 1."""
    shape, axes = reader.shape(call, 0), _integers(reader, call, 1, "axes")
    rank = len(shape)
    dropped = {a % rank for a in axes} if axes else {i for i, d in enumerate(shape) if d == 1}
    x = reader.operand(call, 0)
    for axis in sorted(dropped, reverse=True):
        x = reader.call(torch.squeeze, x, axis)
    return x


def unsqueeze(reader: OnnxReader, call: OnnxCall) -> Node:
    """Insert axes of size 1."""
    axes = _integers(reader, call, 1, "axes") or []
    rank = reader.rank(call, 0) + len(axes)
    x = reader.operand(call, 0)
    for axis in sorted(a % rank for a in axes):
        x = reader.call(torch.unsqueeze, x, axis)
    return x


def concat(reader: OnnxReader, call: OnnxCall) -> Node:
    """Concat."""
    values = [reader.operand(call, i) for i in range(len(call.inputs))]
    return reader.call(torch.cat, values, call.attribute("axis"))


def split(reader: OnnxReader, call: OnnxCall) -> tuple[Node, ...]:
    """Split into given or equal sizes."""
    axis, size = call.attribute("axis", 0), reader.shape(call, 0)
    sizes = _integers(reader, call, 1, "split")
    length = size[axis % len(size)]
    if sizes is None:
        part = -(-length // len(call.outputs))
        sizes = [min(part, length - i * part) for i in range(len(call.outputs))]
    parts = reader.call(torch.split, reader.operand(call, 0), sizes, axis)
    return tuple(reader.call(operator.getitem, parts, i) for i in range(len(sizes)))


def slice_(reader: OnnxReader, call: OnnxCall) -> Node:
    """Slice with constant bounds and positive steps."""
    starts, stops = _integers(reader, call, 1, "starts"), _integers(reader, call, 2, "ends")
    if starts is None or stops is None:
        raise call.unsupported("its bounds are absent")
    axes = _integers(reader, call, 3, "axes") or list(range(len(starts)))
    steps = _integers(reader, call, 4, "steps") or [1] * len(starts)
    if min(steps) < 1:
        raise call.unsupported("it goes backwards")
    shape = reader.shape(call, 0)
    index: list[Any] = [slice(None)] * len(shape)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        bounds = slice(start, stop, step).indices(shape[axis])
        index[axis] = slice(*bounds)
    return reader.call(operator.getitem, reader.operand(call, 0), tuple(index))


def gather(reader: OnnxReader, call: OnnxCall) -> Node:
    """Gather along one axis with constant indices."""
    index, axis = reader.constant(call, 1), call.attribute("axis", 0)
    if index.ndim > 1:
        raise call.unsupported(f"its indices have rank {index.ndim}")
    x, size = reader.operand(call, 0), reader.shape(call, 0)[axis]
    if index.ndim == 0:
        return reader.call(torch.select, x, axis, int(index) % size)
    return reader.call(torch.index_select, x, axis, reader.buffer("index", index % size))


def pad(reader: OnnxReader, call: OnnxCall) -> Node:
    """Pad; reflection and edges of the plane only, as in torch."""
    mode, rank = call.attribute("mode", "constant"), reader.rank(call, 0)
    flat = _integers(reader, call, 1, "pads")
    if mode not in _PAD_MODES or flat is None or reader.constant(call, 3) is not None:
        raise call.unsupported(f"mode {mode}, or pads on chosen axes")
    pairs = [(flat[i], flat[i + rank]) for i in range(rank)]
    if mode != "constant":
        if any(pair != (0, 0) for pair in pairs[:-2]):
            raise call.unsupported(f"mode {mode} outside of the plane")
        pairs = pairs[-2:]
    amounts = [amount for pair in reversed(pairs) for amount in pair]
    value = reader.constant(call, 2, call.attribute("value", 0.0))
    fill = (float(value),) if mode == "constant" else ()
    return reader.call(F.pad, reader.operand(call, 0), amounts, _PAD_MODES[mode], *fill)


def _plane(reader: OnnxReader, call: OnnxCall, early: bool) -> tuple[tuple[int, ...], Any]:
    """New height and width of a Resize, and their factors where those were given."""
    shape = reader.shape(call, 0)
    sizes = None if early else _integers(reader, call, 3, "")
    scales = reader.constant(call, 1 if early else 2, call.attribute("scales"))
    scales = scales if sizes is None else None
    if sizes is None:
        if scales is None or len(scales) != len(shape):
            raise call.unsupported("it has neither scales nor sizes, or only for chosen axes")
        sizes = [math.floor(d * float(s) + _WHOLE) for d, s in zip(shape, scales, strict=True)]
    if len(shape) != 4 or tuple(sizes[:2]) != shape[:2] or 0 in sizes:
        raise call.unsupported("it resizes other axes than the plane, or leaves nothing of it")
    return tuple(sizes[2:]), None if scales is None else tuple(float(s) for s in scales[2:])


def _same_pixels(place: str, rounding: str, ratios: Any, factors: Any) -> bool:
    """Whether torch's nearest picks the pixels that ONNX picks."""
    whole = [abs(f - round(f)) < _WHOLE for f in factors]
    if place == "asymmetric" and rounding == "floor":
        # Where the size is a multiple, torch copies pixels whatever the factor is.
        return all(w or not r.is_integer() for r, w in zip(ratios, whole, strict=True))
    return place in _CENTRED and all(whole) and rounding.startswith("round")


def resize(reader: OnnxReader, call: OnnxCall) -> Node:
    """Resize and Upsample of an image: nearest where torch picks the same pixels, and linear."""
    early = call.op == "Upsample" or call.opset < 11  # before there were these attributes
    place, rounding = ("asymmetric", "floor") if early else (
        call.attribute("coordinate_transformation_mode", "half_pixel"),
        call.attribute("nearest_mode", "round_prefer_floor"),
    )  # fmt: skip
    mode, (size, scales) = call.attribute("mode", "nearest"), _plane(reader, call, early)
    x, old, corners = reader.operand(call, 0), reader.shape(call, 0)[2:], place == "align_corners"
    given = {"size": size} if scales is None or corners else {
        "scale_factor": scales, "recompute_scale_factor": False,
    }  # fmt: skip
    ratios = tuple(map(operator.truediv, size, old))
    if mode == "nearest" and _same_pixels(place, rounding, ratios, scales or ratios):
        return reader.call(F.interpolate, x, **given, mode="nearest")
    # To one pixel, PyTorch itself does not do what ONNX calls by its name.
    single = place == "pytorch_half_pixel" and 1 in size and size != old
    if mode == "linear" and (corners or place in _CENTRED) and not single:
        return reader.call(F.interpolate, x, **given, mode="bilinear", align_corners=corners)
    raise call.unsupported(f"mode {mode}, coordinates {place}, rounding {rounding}, size {size}")


def reduce_mean(reader: OnnxReader, call: OnnxCall) -> Node:
    """ReduceMean."""
    axes = _integers(reader, call, 1, "axes")
    keep, noop = bool(call.attribute("keepdims", 1)), call.attribute("noop_with_empty_axes", 0)
    x = reader.operand(call, 0)
    if not axes and noop:
        return x
    return reader.call(torch.mean, x, tuple(axes or range(reader.rank(call, 0))), keep)


IMPORTERS: dict[str, Importer] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "ReduceMean": reduce_mean,
}
