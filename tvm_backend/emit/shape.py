"""slice_axis, pad, gather2d, channel_shuffle, reshape, permute: values move unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm_backend.call import Call, Value
from tvm_backend.emit.axis_map import axis_map_kernel, identity
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import all_indices, for_chunks, image_rows, load, store
from tvm_backend.emit.naming import kernel_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Image
from tvm_backend.tvm_api import T, tirx

# index of the result -> index of the source
_SourceIndex = Callable[[Sequence[Any]], Sequence[Any]]


def slice_axis(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.slice_axis`."""
    source, numbers = call.inputs[0], call.numbers
    axis = numbers["axis"] % len(source.shape)
    maps = [identity(extent) for extent in source.shape]
    maps[axis] = maps[axis][numbers["start"] : numbers["stop"] : numbers["step"]]
    return (axis_map_kernel("slice", source, call.output, maps, call.target),)


def pad(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.pad`."""
    source = call.inputs[0]
    maps = []
    for extent, (before, after) in zip(source.shape, call.numbers["pads"], strict=True):
        indices = range(-before, extent + after)
        maps.append([i if 0 <= i < extent else -1 for i in indices])
    value = call.numbers["value"]
    if source.storage.dtype != "float32":
        value = int(value) + source.offset
    return (axis_map_kernel("pad", source, call.output, maps, call.target, fill=value),)


def gather2d(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.gather2d`."""
    source, numbers = call.inputs[0], call.numbers
    n, c = source.shape[:2]
    maps = [identity(n), identity(c), numbers["rows"], numbers["cols"]]
    return (axis_map_kernel("gather2d", source, call.output, maps, call.target),)


def channel_shuffle(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.channel_shuffle`; rank-4 images interleave whole vectors."""
    source, output, groups = call.inputs[0], call.output, call.numbers["groups"]
    channels = source.shape[1]
    if len(source.shape) != 4 or not isinstance(source.storage, Image):
        maps = [identity(extent) for extent in source.shape]
        size = channels // groups
        maps[1] = tuple(i % groups * size + i // groups for i in range(channels))
        return (axis_map_kernel("channel_shuffle", source, output, maps, call.target),)
    name = kernel_name("channel_shuffle", (source,), output, call.target, groups)
    build = partial(_build_shuffle, name, source, output, groups)
    return (Kernel(name, build, (source.storage,), (), output.storage),)


def _build_shuffle(name: str, source: Value, output: Value, groups: int, abi: Abi) -> Any:
    image, result = source.image, output.image
    size = image.c // groups
    with prim_func(name, _params(source, output), abi) as (built, p):
        x, y = p["x"], p["y"]
        with image_rows(output, y, abi) as (n, h), T.serial(image.w) as w:
            base, target = image.offset(n, h, w, 0), result.offset(n, h, w, 0)

            def interleave(i: Any, lanes: int) -> None:
                parts = [load(x, base + g * size + i, lanes) for g in range(groups)]
                if lanes == 1:
                    for g, part in enumerate(parts):
                        store(y, target + i * groups + g, part, 1)
                    return
                order = [g * lanes + k for k in range(lanes) for g in range(groups)]
                indices = [tirx.IntImm("int32", k) for k in order]
                vector = tirx.Shuffle(parts, indices)
                store(y, target + i * groups, vector, lanes * groups)

            for_chunks(size, interleave)
    return built.func


def permute(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.permute`."""
    rank = len(call.inputs[0].shape)
    dims = tuple(d % rank for d in call.numbers["dims"])
    inverse = [dims.index(axis) for axis in range(rank)]
    return _reindex(call, "permute", lambda index: [index[i] for i in inverse], dims)


def reshape(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.reshape`."""
    return (reshape_kernel(call.inputs[0], call.output, call),)


def reshape_kernel(source: Value, output: Value, call: Call) -> Kernel:
    """Kernel that copies `source` to `output` in row-major order of their torch shapes."""

    def unravel(index: Sequence[Any]) -> Sequence[Any]:
        position: Any = 0
        for i, extent in zip(index, output.shape, strict=True):
            position = position * extent + i
        found = []
        for extent in reversed(source.shape):
            found.append(position % extent)
            position = position // extent
        return found[::-1]

    name = kernel_name("reshape", (source,), output, call.target)
    build = partial(_build_reindex, name, source, output, unravel)
    return Kernel(name, build, (source.storage,), (), output.storage)


def _reindex(call: Call, op: str, source_index: _SourceIndex, *details: Any) -> tuple[Kernel, ...]:
    source, output = call.inputs[0], call.output
    name = kernel_name(op, (source,), output, call.target, *details)
    build = partial(_build_reindex, name, source, output, source_index)
    return (Kernel(name, build, (source.storage,), (), output.storage),)


def _build_reindex(
    name: str, source: Value, output: Value, source_index: _SourceIndex, abi: Abi
) -> Any:
    with prim_func(name, _params(source, output), abi) as (built, p):
        fill_halo(output, p["y"])
        with all_indices(output.shape, abi) as index:
            value = p["x"][source.at(source_index(index))]
            store(p["y"], output.at(index), value, 1)
    return built.func


def _params(source: Value, output: Value) -> tuple[Param, ...]:
    return (
        Param("x", (source.storage.size,), source.storage.dtype),
        Param("y", (output.storage.size,), output.storage.dtype),
    )
