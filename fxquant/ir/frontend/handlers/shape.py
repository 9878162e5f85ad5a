"""Operators that move values, and those that do nothing in inference."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fxquant.errors import CaptureError
from fxquant.ir.frontend.call import Call
from fxquant.ir.meta import shape_of
from fxquant.ops import shape as ops


def identity(call: Call, input: Any, *args: Any, **kwargs: Any) -> Any:
    """contiguous, detach, clone, ...: nothing to do in inference."""
    return input


def dropout(
    call: Call, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    """Nothing in inference."""
    if training and p > 0:
        raise CaptureError(
            "a dropout drops values at random",
            where=call.place,
            why="a network that is quantized gives the same result every time",
            remedy="call model.eval() before torch.export.export; in forward(), write "
            "F.dropout(x, p, training=self.training)",
        )
    return input


def alpha_dropout(
    call: Call, input: Any, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Any:
    """F.alpha_dropout, which unlike the others is off by default."""
    return dropout(call, input, p, training)


def stochastic_depth(
    call: Call, input: Any, p: float = 0.0, mode: str = "row", training: bool = False
) -> Any:
    """torchvision's stochastic depth is the identity in inference."""
    return NotImplemented if training else input


def reshape(call: Call, input: Node, *args: Any, **kwargs: Any) -> Any:
    """view, reshape, flatten, squeeze, unsqueeze, unflatten: the recorded shape says it all."""
    if call.recorded.dtype != input.meta["dtype"]:  # x.view(dtype) takes bits for other numbers
        return NotImplemented
    return call.reshape(input, call.out_shape)


def expand(call: Call, input: Node, *sizes: Any, **kwargs: Any) -> Any:
    """expand, expand_as, broadcast_to: one pixel repeated over the plane, or nothing to repeat."""
    before, after = shape_of(input), call.out_shape
    if input.op == "get_attr":
        return NotImplemented
    if before == after:
        return input
    if len(before) != 4 or len(after) != 4 or before != (*after[:2], 1, 1):
        return NotImplemented
    return call.emit(ops.gather2d, input, rows=(0,) * after[2], cols=(0,) * after[3])


def permute(call: Call, input: Node, *dims: Any, **kwargs: Any) -> Any:
    """torch.permute."""
    given = kwargs.get("dims", dims[0] if dims and isinstance(dims[0], tuple | list) else dims)
    rank = len(shape_of(input))
    return _permuted(call, input, tuple(d % rank for d in given))


def transpose(call: Call, input: Node, dim0: int, dim1: int) -> Any:
    """torch.transpose."""
    dims = list(range(len(shape_of(input))))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permuted(call, input, tuple(dims))


def t(call: Call, input: Node) -> Any:
    """Transpose of a matrix; a vector stays as it is."""
    return transpose(call, input, 0, 1) if len(shape_of(input)) == 2 else input


def _permuted(call: Call, input: Node, dims: tuple[int, ...]) -> Any:
    if input.op == "get_attr":
        return NotImplemented
    return input if dims == tuple(range(len(dims))) else call.emit(ops.permute, input, dims=dims)


def slice_one(call: Call, x: Node, axis: int, start: Any, stop: Any, step: Any) -> Any:
    """One axis of a slice with Python's rules."""
    begin, end, stride = slice(start, stop, step).indices(shape_of(x)[axis])
    if (begin, end, stride) == (0, shape_of(x)[axis], 1):
        return x
    return call.emit(ops.slice_axis, x, axis=axis, start=begin, stop=end, step=stride)


def aten_slice(
    call: Call, input: Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """aten::slice."""
    if input.op == "get_attr" or min(call.out_shape) == 0:
        return NotImplemented
    return slice_one(call, input, dim % len(shape_of(input)), start, end, step)


def narrow(call: Call, input: Node, dim: int, start: int, length: int) -> Any:
    """torch.narrow; a negative start counts from the end."""
    if not isinstance(start, int):
        return NotImplemented
    begin = start if start >= 0 else start + shape_of(input)[dim]
    return aten_slice(call, input, dim, begin, begin + length)


def select(call: Call, input: Node, dim: int, index: int) -> Any:
    """torch.select: a slice of one, then without the axis."""
    if input.op == "get_attr":
        return NotImplemented
    axis = dim % len(shape_of(input))
    index = index % shape_of(input)[axis]
    return call.reshape(slice_one(call, input, axis, index, index + 1, 1), call.out_shape)


def getitem(call: Call, input: Any, index: Any) -> Any:
    """`x[index]` of a tuple, or of a tensor with slices, integers, None and Ellipsis."""
    if not isinstance(input, Node):
        return input[index]
    items = index if isinstance(index, tuple) else (index,)
    if input.op == "get_attr" or not all(
        i is None or i is Ellipsis or (isinstance(i, int | slice) and not isinstance(i, bool))
        for i in items
    ):
        return NotImplemented
    if min(call.out_shape, default=1) == 0:
        return NotImplemented
    rank = len(shape_of(input))
    explicit = sum(i is not None and i is not Ellipsis for i in items)
    x, axis = input, 0
    for item in items:
        if item is Ellipsis:
            axis += rank - explicit
        elif isinstance(item, slice):
            if item.step is not None and item.step < 1:
                return NotImplemented
            x = slice_one(call, x, axis, item.start, item.stop, item.step)
            axis += 1
        elif item is not None:
            begin = item % shape_of(x)[axis]
            x = slice_one(call, x, axis, begin, begin + 1, 1)
            axis += 1
    return call.reshape(x, call.out_shape)


def attribute(call: Call, input: Any, name: str) -> Any:
    """`.values` and `.indices` of a result pair (max, topk, sort, ...)."""
    fields = ("values", "indices")
    if not isinstance(input, tuple) or name not in fields:
        return NotImplemented
    return input[fields.index(name)]


def chunk(call: Call, input: Node, chunks: int, dim: int = 0) -> Any:
    """torch.chunk: the recorded pieces say where to cut."""
    return _pieces(call, input, dim)


def split(call: Call, input: Node, split_size: Any, dim: int = 0) -> Any:
    """torch.split and aten::split_with_sizes."""
    return _pieces(call, input, dim)


def _pieces(call: Call, input: Node, dim: int) -> Any:
    if input.op == "get_attr":
        return NotImplemented
    axis, start, pieces = dim % len(shape_of(input)), 0, []
    for info in call.recorded:
        stop = start + info.shape[axis]
        pieces.append(slice_one(call, input, axis, start, stop, 1))
        start = stop
    return tuple(pieces)


def pad(
    call: Call, input: Node, pad: Any, mode: str = "constant", value: float | None = None
) -> Any:
    """F.pad: constant on any axis; reflect and replicate on the plane of an image."""
    amounts = list(pad) if not isinstance(pad, int) else [pad] * 4
    rank = len(shape_of(input))
    pairs = [(0, 0)] * rank
    for i in range(len(amounts) // 2):
        pairs[rank - 1 - i] = (amounts[2 * i], amounts[2 * i + 1])
    if mode == "constant":
        return call.emit(ops.pad, input, pads=tuple(pairs), value=float(value or 0.0))
    if rank != 4 or mode not in ("reflect", "replicate") or min(amounts) < 0:
        return NotImplemented
    rows, cols = (
        tuple(_source(i, size, mode) for i in range(-before, size + after))
        for size, (before, after) in zip(shape_of(input)[2:], pairs[2:], strict=True)
    )
    return call.emit(ops.gather2d, input, rows=rows, cols=cols)


def _source(i: int, size: int, mode: str) -> int:
    if mode == "replicate":
        return min(max(i, 0), size - 1)
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def reflection_pad2d(call: Call, input: Node, padding: Any) -> Any:
    """aten::reflection_pad2d."""
    return pad(call, input, padding, "reflect")


def replication_pad2d(call: Call, input: Node, padding: Any) -> Any:
    """aten::replication_pad2d."""
    return pad(call, input, padding, "replicate")


def constant_pad_nd(call: Call, input: Node, padding: Any, value: float = 0.0) -> Any:
    """aten::constant_pad_nd."""
    return pad(call, input, padding, "constant", value)


def channel_shuffle(call: Call, input: Node, groups: int) -> Any:
    """F.channel_shuffle."""
    return call.emit(ops.channel_shuffle, input, groups=groups)


def pixel_shuffle(call: Call, input: Node, upscale_factor: int) -> Any:
    """F.pixel_shuffle as reshape, permute, reshape."""
    if len(shape_of(input)) != 4:
        return NotImplemented
    n, c, h, w = shape_of(input)
    r = upscale_factor
    parts = call.reshape(input, (n, c // (r * r), r, r, h, w))
    mixed = call.emit(ops.permute, parts, dims=(0, 1, 4, 2, 5, 3))
    return call.reshape(mixed, call.out_shape)


def to(call: Call, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Conversions that keep the dtype are nothing."""
    if isinstance(input, Node) and call.recorded.dtype == input.meta["dtype"]:
        return input
    return NotImplemented


_reshapes = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_as",
             "reshape_as", "_unsafe_view")  # fmt: skip
_nothings = ("identity", "contiguous", "detach", "clone", "alias", "lift_fresh_copy")
_dropouts = ("dropout", "dropout1d", "dropout2d", "feature_dropout", "native_dropout")

HANDLERS = {
    **dict.fromkeys(_reshapes, reshape),
    **dict.fromkeys(_nothings, identity),
    **dict.fromkeys(_dropouts, dropout),
    "alpha_dropout": alpha_dropout,
    "feature_alpha_dropout": alpha_dropout,
    "stochastic_depth": stochastic_depth,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "permute": permute,
    "transpose": transpose,
    "t": t,
    "slice": aten_slice,
    "narrow": narrow,
    "select": select,
    "getitem": getitem,
    "getattr": attribute,
    "chunk": chunk,
    "split": split,
    "split_with_sizes": split,
    "unsafe_split": split,
    "pad": pad,
    "reflection_pad2d": reflection_pad2d,
    "replication_pad2d": replication_pad2d,
    "constant_pad_nd": constant_pad_nd,
    "channel_shuffle": channel_shuffle,
    "pixel_shuffle": pixel_shuffle,
    "to": to,
    "_to_copy": to,
    "float": to,
    "type_as": to,
}
