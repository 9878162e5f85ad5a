"""avg_pool2d: sums of vectors of channels, one requantization a window.

Sums of stored values have 16 bits where a window of 8-bit codes cannot exceed them, else int32;
int64 where a window of 16-bit codes may exceed that. The zero point is subtracted once, at the
end (`sum - count * zp`). Windows are walked with up to four
vectors of channels at a time, so that every cache line is read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from fxquant.numerics.accumulator import INT32_MAX
from tvm_backend.call import Call, Value
from tvm_backend.emit.elementwise import code_bound
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import load_as, splat, spread_loop, store, vector_type
from tvm_backend.emit.naming import kernel_name
from tvm_backend.emit.requant import Numbers, scale, scale_by, to_stored
from tvm_backend.emit.scalars import Scalars, shared_name
from tvm_backend.emit.windows import Run, Window, runs
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.tvm_api import IN_REGISTERS, T

_VECTORS = 4
_SHORT_SUMS = {"uint8": ("uint16", 257), "int8": ("int16", 256)}  # type, largest window

# (sum, index of the window, bound of the sum) -> what is stored
_Finish = Callable[[Any, Any, int], Any]
# (scalars, tables) as the kernel reads them -> the above
_Make = Callable[[Scalars, Any], _Finish]


@dataclass(frozen=True, slots=True)
class _Pool:
    """One pooling kernel.

    Attributes:
        name: Kernel name.
        source: Input.
        output: Result.
        rows: Windows along H.
        cols: Windows along W.
        scalars: Zero points, and the multiplier if all windows have the same.
        tables: Number of windows if their requantizations differ, else 0.
    """

    name: str
    source: Value
    output: Value
    rows: tuple[Window, ...]
    cols: tuple[Window, ...]
    scalars: Scalars
    tables: int

    def kernel(self, make: _Make, *tables: np.ndarray) -> tuple[Kernel, ...]:
        """The kernel that finishes windows like this."""
        constants = (*tables, self.scalars.constant())
        build = partial(_build, self, make)
        return (Kernel(self.name, build, (self.source.storage,), constants, self.output.storage),)


def avg_pool2d_accumulate(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.avg_pool2d_accumulate`."""
    rows, cols = _windows(call)
    name = kernel_name("sum_pool2d", call.inputs, call.output, call.target, rows, cols)
    zero_point = call.numbers["zero_point"] + call.inputs[0].offset
    scalars = Scalars((zero_point,), (), 0, 0)
    pool = _Pool(name, call.inputs[0], call.output, rows, cols, scalars, 0)
    return pool.kernel(lambda scalars, tables: lambda acc, window, bound: acc)


def avg_pool2d(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.avg_pool2d`."""
    multiplier = np.asarray(call.tensors["multiplier"], np.int32).reshape(-1)
    shift = np.asarray(call.tensors["shift"], np.int32).reshape(-1)
    if len(set(zip(multiplier.tolist(), shift.tolist(), strict=True))) == 1:
        s = int(shift[0])
        return _pool(call, multiplier[:1].tolist(), 0, s).kernel(partial(_alike, call, s))
    windows = multiplier.size
    tables = np.concatenate(Numbers.of(multiplier, shift))
    return _pool(call, [], windows).kernel(partial(_by_table, call, windows), tables)


def _pool(call: Call, multipliers: Sequence[int], tables: int, *details: Any) -> _Pool:
    rows, cols = _windows(call)
    name = shared_name("avg_pool2d", call, rows, cols, tables, *details)
    scalars = Scalars.of(call, [call.numbers["zero_point"]], multipliers)
    return _Pool(name, call.inputs[0], call.output, rows, cols, scalars, tables)


def _windows(call: Call) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    return tuple(call.numbers["rows"]), tuple(call.numbers["cols"])


def _alike(call: Call, shift: int, scalars: Scalars, tables: Any) -> _Finish:
    del tables
    grid, (multiplier,) = scalars.grid(call), scalars.multipliers
    return lambda acc, window, bound: to_stored(
        scale(acc, multiplier, shift, bound, grid.width), grid
    )


def _by_table(call: Call, windows: int, scalars: Scalars, tables: Any) -> _Finish:
    grid = scalars.grid(call)

    def finish(acc: Any, window: Any, bound: int) -> Any:
        numbers = Numbers(*(tables[row * windows + window] for row in range(4)))
        return to_stored(scale_by(acc, numbers, bound, grid.width), grid)

    return finish


def _build(pool: _Pool, make: _Make, abi: Abi) -> Any:
    source, result = pool.source.storage, pool.output.storage
    params = (
        Param("x", (source.size,), source.dtype),
        *([Param("tables", (4 * pool.tables,), "int32")] if pool.tables else []),
        pool.scalars.param(),
        Param("y", (result.size,), result.dtype),
    )
    with prim_func(pool.name, params, abi) as (built, p):
        scalars = pool.scalars.read(p["scalars"])
        fill_halo(scalars.placed(pool.output), p["y"])
        finish = make(scalars, p.get("tables"))
        for row, col in product(runs(pool.rows), runs(pool.cols)):
            _block(pool, row, col, p["x"], p["y"], scalars.zero_points[0], finish, abi)
    return built.func


def _block(
    pool: _Pool, row: Run, col: Run, x: Any, y: Any, zero_point: Any, finish: _Finish, abi: Abi
) -> None:
    """All windows of one pair of runs, spread over rows and groups of channels."""
    image, result = pool.source.image, pool.output.image
    lanes = math.gcd(16, image.channels, result.channels)
    total = -(-result.c // lanes)
    vectors = max(v for v in range(1, _VECTORS + 1) if total % v == 0)
    groups = total // vectors
    count = row.size * col.size
    bound = code_bound(pool.source) * count
    wide = "int32" if 2 * bound <= INT32_MAX else "int64"  # before the zero points are subtracted
    short, largest = _SHORT_SUMS.get(image.dtype, (wide, 0))
    summed = short if count <= largest else wide
    work = result.n * row.count * col.count * total * lanes * count
    with (
        spread_loop(result.n * row.count * groups, work, abi) as i,
        T.serial(col.count) as j,
    ):
        c = (i % groups) * (vectors * lanes)
        n, h = i // groups // row.count, i // groups % row.count
        sums = T.alloc_buffer((vectors,), vector_type(summed, lanes), annotations=IN_REGISTERS)
        for v in range(vectors):
            T.buffer_store(sums, splat(0, summed, lanes), [v])
        with T.serial(row.size) as a, T.serial(col.size) as b:
            base = image.offset(n, row.tap(h, a), col.tap(j, b), c)
            for v in range(vectors):
                codes = load_as(x, base + v * lanes, summed, lanes)
                T.buffer_store(sums, sums[v] + codes, [v])
        window = (row.first + h) * len(pool.cols) + col.first + j
        target = result.offset(n, row.first + h, col.first + j, c)
        for v in range(vectors):
            total = T.cast(sums[v], vector_type(wide, lanes))
            acc = total - splat(count * T.cast(zero_point, wide), wide, lanes)
            store(y, target + v * lanes, finish(acc, window, bound), lanes)
