"""resize_linear2d: four corners times four weights, which is the reference's sum multiplied out.

`sum w*(x - zp) = sum w*x - 2^2b*zp`, because the weights of a pixel sum to 2^2b.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fxquant.numerics.reference.pool import resize_bits
from fxquant.numerics.width import WIDTH_8
from tvm_backend.call import Call
from tvm_backend.emit.elementwise import code_bound
from tvm_backend.emit.loops import channel_lanes, image_rows, load_as, store
from tvm_backend.emit.requant import output_grid, scale, to_stored
from tvm_backend.emit.scalars import Scalars, shared_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.tvm_api import T


def resize_linear2d(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.resize_linear2d`."""
    rows = np.ascontiguousarray(call.numbers["rows"], np.int32).reshape(-1)  # [OH * 3]
    cols = np.ascontiguousarray(call.numbers["cols"], np.int32).reshape(-1)  # [OW * 3]
    scalars = Scalars.of_result(call)
    name = shared_name("resize_linear2d", call)
    constants = (rows, cols, scalars.constant())
    build = partial(_build, name, call, scalars)
    return (Kernel(name, build, (call.inputs[0].storage,), constants, call.output.storage),)


def _build(name: str, call: Call, scalars: Scalars, abi: Abi) -> Any:
    source = call.inputs[0]
    image, result = source.image, call.output.image
    params = (
        Param("x", (image.size,), image.dtype),
        Param("rows", (result.h * 3,), "int32"),
        Param("cols", (result.w * 3,), "int32"),
        scalars.param(),
        Param("y", (result.size,), result.dtype),
    )
    lanes = channel_lanes(image, result)
    width = output_grid(call).width
    bits = resize_bits(width)
    one, wide = 1 << bits, "int32" if width is WIDTH_8 else "int64"
    multiplier, shift = 1 << (width.multiplier_bits - 1), 2 * bits - 1 - width.fraction_bits
    with prim_func(name, params, abi) as (built, p):
        x, rows, cols, y = p["x"], p["rows"], p["cols"], p["y"]
        elements = scalars.read(p["scalars"])
        output, grid = elements.placed(call.output), elements.grid(call)
        with image_rows(output, y, abi) as (n, h), T.serial(result.w) as w:
            i0, i1, wi = (T.Bind(rows[h * 3 + k]) for k in range(3))
            j0, j1, wj = (T.Bind(cols[w * 3 + k]) for k in range(3))
            corners = [
                (T.Bind(image.offset(n, i, j, 0)), T.Bind(T.cast(a, wide) * T.cast(b, wide)))
                for i, a in ((i0, one - wi), (i1, wi))
                for j, b in ((j0, one - wj), (j1, wj))
            ]
            with T.serial(-(-result.c // lanes)) as v:
                acc = -(one * one * T.cast(grid.zero_point, wide))
                for base, weight in corners:
                    acc = load_as(x, base + v * lanes, wide, lanes) * weight + acc
                scaled = scale(acc, multiplier, shift, code_bound(source) * one * one, width)
                store(y, result.offset(n, h, w, v * lanes), to_stored(scaled, grid), lanes)
    return built.func
