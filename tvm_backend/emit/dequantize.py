"""dequantize and dequantize_accumulator: stored values -> float32 in torch's order.

Both are one float32 product (and a clamp): nothing a compiler could contract or reassociate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tvm_backend.call import Call, Value
from tvm_backend.emit.loops import (
    all_indices,
    for_chunks,
    load,
    load_as,
    splat,
    spread_loop,
    store,
    to_float32,
    vector_type,
)
from tvm_backend.emit.naming import kernel_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Flat, Image
from tvm_backend.tvm_api import T

# (integer vector, channel, lanes, whether the lanes are channels) -> float32 vector
_Convert = Callable[[Any, Any, int, bool], Any]


def dequantize(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.dequantize`."""
    source = call.inputs[0]
    constants = {
        "scales": np.array([call.numbers["scale"]], np.float32),
        "zero_point": np.array([call.numbers["zero_point"] + source.offset], np.int32),
    }

    def conversion(p: Mapping[str, Any]) -> _Convert:
        def convert(stored: Any, channel: Any, lanes: int, across: bool) -> Any:
            del channel, across
            real = T.cast(stored - p["zero_point"][0], vector_type("float32", lanes))
            return real * splat(p["scales"][0], "float32", lanes)

        return convert

    return _kernel(call, "dequantize", constants, -1, conversion)


def dequantize_accumulator(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.dequantize_accumulator`."""
    scale = np.ascontiguousarray(call.tensors["scale"], np.float32)
    lower, upper = call.numbers["lower"], call.numbers["upper"]
    axis = call.numbers["axis"] % len(call.inputs[0].shape)
    axis = -1 if scale.size == 1 else axis

    def conversion(p: Mapping[str, Any]) -> _Convert:
        scales = p["scales"]

        def convert(stored: Any, channel: Any, lanes: int, across: bool) -> Any:
            if axis == -1:
                factor = splat(scales[0], "float32", lanes)
            elif across:
                factor = load(scales, channel, lanes)
            else:
                factor = splat(scales[channel], "float32", lanes)
            real = to_float32(stored, lanes) * factor
            if lower is not None:
                real = T.max(real, splat(float(lower), "float32", lanes))
            if upper is not None:
                real = T.min(real, splat(float(upper), "float32", lanes))
            return real

        return convert

    constants = {"scales": scale}
    return _kernel(call, "dequantize_accumulator", constants, axis, conversion, lower, upper)


def _kernel(
    call: Call, op: str, constants: Mapping[str, np.ndarray], axis: int,
    conversion: Callable[[Mapping[str, Any]], _Convert], *details: Any,
) -> tuple[Kernel, ...]:  # fmt: skip
    source, output = call.inputs[0], call.output
    name = kernel_name(op, (source,), output, call.target, axis, *details)
    params = [Param(key, array.shape, str(array.dtype)) for key, array in constants.items()]
    build = partial(_build, name, source, output, params, axis, conversion)
    return (Kernel(name, build, (source.storage,), tuple(constants.values()), output.storage),)


def _build(
    name: str, source: Value, output: Value, constants: Sequence[Param], axis: int,
    conversion: Callable[[Mapping[str, Any]], _Convert], abi: Abi,
) -> Any:  # fmt: skip
    params = (
        Param("x", (source.storage.size,), source.storage.dtype),
        *constants,
        Param("y", (output.storage.size,), "float32"),
    )
    storage = source.storage
    wide = "int64" if storage.dtype == "int64" else "int32"
    rank = len(source.shape)
    channel_axis = 1 if rank == 4 else rank - 1
    with prim_func(name, params, abi) as (built, p):
        x, y = p["x"], p["y"]
        convert = conversion(p)
        if isinstance(storage, Flat) or axis not in (-1, channel_axis):
            with all_indices(source.shape, abi) as index:
                stored = T.cast(x[source.at(index)], wide)
                store(y, output.at(index), convert(stored, index[axis], 1, False), 1)
        elif rank == 4:
            _planes(storage, x, y, wide, convert, abi)
        else:
            _rows(storage, x, y, wide, convert, abi)
    return built.func


def _planes(image: Image, x: Any, y: Any, wide: str, convert: _Convert, abi: Abi) -> None:
    """NHWC -> NCHW: vectors of pixels of one channel."""
    plane = image.h * image.w
    if plane == 1:
        _rows(image, x, y, wide, convert, abi)
        return
    with spread_loop(image.n * image.c, image.size, abi) as i, T.serial(image.h) as h:
        n, c = i // image.c, i % image.c

        def pixels(w: Any, lanes: int) -> None:
            stored = load(x, image.offset(n, h, w, c), lanes, image.channels)
            stored = T.cast(stored, vector_type(wide, lanes))
            store(y, i * plane + h * image.w + w, convert(stored, c, lanes, False), lanes)

        for_chunks(image.w, pixels)


def _rows(image: Image, x: Any, y: Any, wide: str, convert: _Convert, abi: Abi) -> None:
    """The channel axis is torch's last: rows of channels stay rows."""
    with spread_loop(image.n * image.w, image.size, abi) as i:
        base = image.offset(i // image.w, 0, i % image.w, 0)

        def channels(c: Any, lanes: int) -> None:
            stored = load_as(x, base + c, wide, lanes)
            store(y, i * image.c + c, convert(stored, c, lanes, True), lanes)

        for_chunks(image.c, channels)
