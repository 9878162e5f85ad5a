"""max_pool2d: maxima of vectors of channels, stored values as they are (the order is the same).

Floats lie in torch's order; their maxima are taken one by one.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

from tvm_backend.call import Call, Value
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import all_indices, load, spread_loop, store, vector_type
from tvm_backend.emit.naming import kernel_name
from tvm_backend.emit.windows import Run, Window, runs
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Flat
from tvm_backend.tvm_api import IN_REGISTERS, T

_UNROLLED_TAPS = 64  # over all kinds of windows


def max_pool2d(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.max_pool2d` on codes and on floats."""
    source, output = call.inputs[0], call.output
    rows, cols = tuple(call.numbers["rows"]), tuple(call.numbers["cols"])
    name = kernel_name("max_pool2d", (source,), output, call.target, rows, cols)
    if isinstance(output.storage, Flat):
        build = partial(_build_flat, name, source, output, rows, cols)
    else:
        widest = max(call.target.vector_bits // 8, 16)
        lanes = math.gcd(widest, source.image.channels, output.image.channels)
        build = partial(_build, name, source, output, rows, cols, lanes)
    return (Kernel(name, build, (source.storage,), (), output.storage),)


def _build(
    name: str, source: Value, output: Value, rows: tuple[Window, ...], cols: tuple[Window, ...],
    lanes: int, abi: Abi,
) -> Any:  # fmt: skip
    params = (
        Param("x", (source.storage.size,), source.storage.dtype),
        Param("y", (output.storage.size,), output.storage.dtype),
    )
    blocks = list(product(runs(rows), runs(cols)))
    unroll = sum(row.size * col.size for row, col in blocks) <= _UNROLLED_TAPS
    image, result = source.image, output.image
    dtype = vector_type(image.dtype, lanes)
    with prim_func(name, params, abi) as (built, p):
        x, y = p["x"], p["y"]
        fill_halo(output, y)
        for row, col in blocks:
            work = result.n * row.count * col.count * result.channels * row.size * col.size
            with (
                spread_loop(result.n * row.count, work, abi) as i,
                T.serial(col.count) as j,
                T.serial(-(-result.c // lanes)) as v,
            ):
                n, h = i // row.count, i % row.count

                def tap(a: Any, b: Any) -> Any:
                    position = image.offset(n, row.tap(h, a), col.tap(j, b), v * lanes)  # noqa: B023
                    return load(x, position, lanes)

                largest = (
                    _unrolled(row, col, tap) if unroll else _looped(row, col, tap, dtype, T.max)
                )
                store(y, result.offset(n, row.first + h, col.first + j, v * lanes), largest, lanes)
    return built.func


def _build_flat(
    name: str, source: Value, output: Value, rows: tuple[Window, ...], cols: tuple[Window, ...],
    abi: Abi,
) -> Any:  # fmt: skip
    dtype = output.storage.dtype
    params = (Param("x", (source.storage.size,), dtype), Param("y", (output.storage.size,), dtype))
    n, c, _, _ = output.shape
    with prim_func(name, params, abi) as (built, p):
        for row, col in product(runs(rows), runs(cols)):
            with all_indices((n, c, row.count, col.count), abi) as (i, k, h, w):

                def tap(a: Any, b: Any) -> Any:
                    return p["x"][source.at((i, k, row.tap(h, a), col.tap(w, b)))]  # noqa: B023

                largest = _looped(row, col, tap, dtype, _maximum)
                position = output.at((i, k, row.first + h, col.first + w))
                T.buffer_store(p["y"], largest, [position])
    return built.func


def _unrolled(row: Run, col: Run, tap: Any) -> Any:
    """A balanced tree of maxima."""
    values = [tap(a, b) for a in range(row.size) for b in range(col.size)]
    while len(values) > 1:
        odd = values[-1:] if len(values) % 2 else []
        values = [T.max(a, b) for a, b in zip(values[::2], values[1::2], strict=False)] + odd
    return values[0]


def _looped(row: Run, col: Run, tap: Any, dtype: str, maximum: Any) -> Any:
    largest = T.alloc_buffer((1,), dtype, annotations=IN_REGISTERS)
    T.buffer_store(largest, tap(0, 0), [0])
    with T.serial(row.size) as a, T.serial(col.size) as b:
        T.buffer_store(largest, maximum(largest[0], tap(a, b)), [0])
    return largest[0]


def _maximum(a: Any, b: Any) -> Any:
    """The larger float; not a number if one of them is none, as in torch."""
    return T.Select(T.Or(a >= b, T.isnan(a)), a, b)
