"""local_response_norm: exact float32 operations in the order the reference states.

The squares of a pixel go to a scratch row with zeros on both sides, so that a window is `size`
vector loads. The compiler may fuse a product into a following sum; here no product feeds a sum,
and quotients and roots are correctly rounded, so the result is the same on every machine.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fxquant.numerics.width import WIDTH_8
from tvm_backend.call import Call, Value
from tvm_backend.emit.loops import (
    channel_lanes,
    clip,
    fill,
    image_rows,
    load,
    load_as,
    splat,
    store,
    to_float32,
    vector_type,
)
from tvm_backend.emit.naming import kernel_name
from tvm_backend.emit.quantize import round_to_int
from tvm_backend.emit.requant import Grid, output_grid
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import code_width
from tvm_backend.tvm_api import IN_REGISTERS, T


def local_response_norm(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.local_response_norm`."""
    source, output, numbers, grid = call.inputs[0], call.output, call.numbers, output_grid(call)
    details = (
        numbers["size"], numbers["zero_point"] + source.offset,
        float(numbers["offset"]), float(numbers["factor"]), grid,
    )  # fmt: skip
    name = kernel_name("local_response_norm", (source,), output, call.target, *details)
    build = partial(_build, name, source, output, *details)
    return (Kernel(name, build, (source.storage,), (), output.storage),)


def _build(
    name: str, source: Value, output: Value, size: int, zero_point: int, offset: float,
    factor: float, grid: Grid, abi: Abi,
) -> Any:  # fmt: skip
    image, result = source.image, output.image
    params = (
        Param("x", (image.size,), image.dtype),
        Param("y", (result.size,), result.dtype),
    )
    lanes = channel_lanes(image, result)
    vectors = -(-image.c // lanes)
    before = size // 2
    length = vectors * lanes + size
    floats = vector_type("float32", lanes)
    wide = "int32" if code_width(image.dtype) is WIDTH_8 else "int64"
    with prim_func(name, params, abi) as (built, p):
        x, y = p["x"], p["y"]
        with image_rows(output, y, abi) as (n, h):
            squares = T.alloc_buffer((length,), wide, annotations=IN_REGISTERS)
            fill(squares, 0, length, 0)
            with T.serial(image.w) as w:
                with T.serial(image.c) as c:
                    a = T.Bind(T.cast(x[image.offset(n, h, w, c)], wide) - zero_point)
                    store(squares, before + c, a * a, 1)
                with T.serial(vectors) as v:
                    c = v * lanes
                    a = load_as(x, image.offset(n, h, w, c), "int32", lanes) - zero_point
                    energy = load(squares, c, lanes)
                    for k in range(1, size):
                        energy = energy + load(squares, c + k, lanes)
                    z = T.Bind(to_float32(energy, lanes) + splat(offset, "float32", lanes))
                    root = T.Bind(T.sqrt(z))
                    real = T.Bind(T.cast(a, floats) / (root * T.sqrt(root)))
                    codes = round_to_int(real * splat(factor, "float32", lanes), lanes)
                    codes = clip(codes + grid.zero_point, grid.qmin, grid.qmax)
                    store(y, result.offset(n, h, w, c), codes, lanes)
    return built.func
