"""quantize: float32 in torch's order -> stored codes.

`clip(round_half_even(x / scale) + zp)` without any rounding instruction: a value of magnitude
below 2^22 plus `1.5 * 2^23` has its rounded integer in the low mantissa bits, on every IEEE
machine and without a library call. NaN is found in the bit pattern, so that no simplifier can
decide that `x == x` is true.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fxquant.numerics.width import WIDTH_8
from tvm_backend.call import Call, Value
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import (
    clip,
    for_chunks,
    image_rows,
    load,
    splat,
    spread_loop,
    store,
    vector_type,
)
from tvm_backend.emit.scalars import Scalars, shared_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE, Image, code_width
from tvm_backend.tvm_api import T

_MAGIC = 12582912.0  # 1.5 * 2^23
_MAGIC_BITS = 0x4B400000
_INFINITY_BITS = 0x7F800000
_LARGEST = 65536.0


def round_to_int(real: Any, lanes: int) -> Any:
    """Nearest int32, ties to even, of a float32 vector, after a clamp to +-65536; NaN is 0."""
    integer = vector_type("int32", lanes)
    real = T.Bind(real)
    magnitude = T.reinterpret(integer, real) & splat(0x7FFFFFFF, "int32", lanes)
    is_nan = magnitude > splat(_INFINITY_BITS, "int32", lanes)
    real = T.Select(is_nan, splat(0.0, "float32", lanes), real)
    real = clip(real, splat(-_LARGEST, "float32", lanes), splat(_LARGEST, "float32", lanes))
    return T.reinterpret(integer, real + splat(_MAGIC, "float32", lanes)) - _MAGIC_BITS


def quantize(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.quantize`."""
    scale = np.array([call.numbers["scale"]], np.float32)
    scalars = Scalars.of_result(call)
    name = shared_name("quantize", call)
    storage, constants = call.inputs[0].storage, (scale, scalars.constant())
    build = partial(_build, name, call, scalars)
    return (Kernel(name, build, (storage,), constants, call.output.storage),)


def _build(name: str, call: Call, scalars: Scalars, abi: Abi) -> Any:
    params = (
        Param("x", (call.inputs[0].storage.size,), "float32"),
        Param("scale", (1,), "float32"),
        scalars.param(),
        Param("y", (call.output.storage.size,), call.output.storage.dtype),
    )
    with prim_func(name, params, abi) as (built, p):
        x, y, elements = p["x"], p["y"], scalars.read(p["scalars"])
        output, grid = elements.placed(call.output), elements.grid(call)

        def stored(position: Any, lanes: int) -> Any:
            ratio = load(x, position, lanes) / splat(p["scale"][0], "float32", lanes)
            codes = round_to_int(ratio, lanes) + grid.zero_point
            return clip(codes, grid.qmin, grid.qmax)

        if len(output.shape) == 4:
            _planes(output, y, stored, abi)
        else:
            _contiguous(output, y, stored, abi)
    return built.func


def _planes(output: Value, y: Any, stored: Any, abi: Abi) -> None:
    """NCHW -> NHWC; up to four channels leave in one 32-bit lane a pixel."""
    image = output.image
    plane = image.h * image.w
    packed = image.channels == INPUT_CHANNEL_MULTIPLE and code_width(image.dtype) is WIDTH_8
    with image_rows(output, y, abi) as (n, h):
        row = n * (image.c * plane) + h * image.w

        def pack(w: Any, lanes: int) -> None:
            pixels = None
            for c in range(image.c):
                byte = (stored(row + c * plane + w, lanes) & 255) << (8 * c)
                pixels = byte if pixels is None else pixels | byte
            stored_bytes = T.reinterpret(vector_type(y.dtype, 4 * lanes), pixels)
            store(y, image.offset(n, h, w, 0), stored_bytes, 4 * lanes)

        def scatter(w: Any, lanes: int) -> None:
            with T.serial(image.c) as c:
                position = image.offset(n, h, w, c)
                store(y, position, stored(row + c * plane + w, lanes), lanes, image.channels)

        for_chunks(image.w, pack if packed else scatter)


def _contiguous(output: Value, y: Any, stored: Any, abi: Abi) -> None:
    """The channel axis is torch's last: rows of channels stay rows."""
    storage = output.storage
    if isinstance(storage, Image):
        fill_halo(output, y)
        with spread_loop(storage.n * storage.w, storage.size, abi) as i:
            target = storage.offset(i // storage.w, 0, i % storage.w, 0)
            for_chunks(
                storage.c,
                lambda c, lanes: store(y, target + c, stored(i * storage.c + c, lanes), lanes),
            )
    else:
        for_chunks(storage.size, lambda i, lanes: store(y, i, stored(i, lanes), lanes))
