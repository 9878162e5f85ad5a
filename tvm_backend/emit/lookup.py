"""lookup: a table of stored results, indexed by the bits of the stored code.

For offset storage the table is permuted at compile time, so that no arithmetic is left. One
table of bytes for all channels and byte codes is read with shuffles (`byte_table.py`), every other
by loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tvm_backend.call import Call, Value
from tvm_backend.emit.axis_map import channel_axis
from tvm_backend.emit.byte_table import ByteTable, Scalar, byte_table
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import all_indices, image_rows, load, store, vector_type
from tvm_backend.emit.naming import kernel_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Image
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True, eq=False)
class _Lookup:
    """One lookup kernel.

    Attributes:
        name: Kernel name.
        source: Input.
        output: Result.
        size: Elements of the table constant.
        codes: Codes an input may have: entries of the table of a channel.
        reader: How the table is read.
    """

    name: str
    source: Value
    output: Value
    size: int
    codes: int
    reader: ByteTable


def lookup(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.lookup`, with one table or one a channel."""
    source, output = call.inputs[0], call.output
    codes = np.asarray(call.tensors["table"]).astype(np.int32) + output.offset
    stored_bits = np.arange(codes.shape[-1]) ^ -source.offset  # the offset flips the highest bit
    table = codes.astype(output.storage.dtype)[..., stored_bits]
    images = isinstance(source.storage, Image) and isinstance(output.storage, Image)
    shared = table.ndim == 1 and images
    bytes_only = source.storage.dtype == output.storage.dtype == call.target.mac.storage
    vectors = shared and bytes_only and _run_length(source.image, output.image) % 16 == 0
    reader = byte_table(call.target) if vectors else Scalar()
    constant = np.ascontiguousarray(reader.constant(table).reshape(-1))
    name = kernel_name("lookup", (source,), output, call.target, table.ndim)
    plan = _Lookup(name, source, output, constant.size, codes.shape[-1], reader)
    if shared:
        build = partial(_build, plan, _by_vector)
    elif images and channel_axis(len(source.shape)) == 1:
        build = partial(_build, plan, _by_channel)
    else:
        build = partial(_build, plan, partial(_by_element, per_channel=table.ndim == 2))
    in_place = (0,) if source.same_place(output) else ()
    return (Kernel(name, build, (source.storage,), (constant,), output.storage, in_place),)


def _build(plan: _Lookup, emit: Any, abi: Abi) -> Any:
    source, output = plan.source.storage, plan.output.storage
    params = (
        Param("x", (source.size,), source.dtype),
        Param("table", (plan.size,), output.dtype),
        Param("y", (output.size,), output.dtype),
    )
    with prim_func(plan.name, params, abi) as (built, p):
        emit(plan, p["x"], p["table"], p["y"], abi)
    return built.func


def _index(x: Any, position: Any, lanes: int = 1) -> Any:
    """The bits of stored codes, unsigned."""
    unsigned = f"uint{np.dtype(x.dtype).itemsize * 8}"
    return T.reinterpret(vector_type(unsigned, lanes), load(x, position, lanes))


def _run_length(source: Image, output: Image) -> int:
    """Consecutive elements looked up in one go: a row, or a pixel where the channels differ."""
    if source.channels == output.channels:
        return source.w * source.channels
    return min(source.channels, output.channels)


def _by_vector(plan: _Lookup, x: Any, table: Any, y: Any, abi: Abi) -> None:
    """Every stored value is a valid index, so that padding channels may be looked up as well."""
    image, result = plan.source.image, plan.output.image
    length = _run_length(image, result)
    runs = 1 if image.channels == result.channels else image.w
    with image_rows(plan.output, y, abi) as (n, h), T.serial(runs) as w:
        position, target = image.offset(n, h, w, 0), result.offset(n, h, w, 0)
        _run(plan.reader, x, position, table, y, target, length)


def _run(
    reader: ByteTable, x: Any, position: Any, table: Any, y: Any, target: Any, length: int
) -> None:
    """Look up `length` consecutive elements, by the widest vectors first."""
    start = 0
    for lanes, together in _vectors(reader):
        count = (length - start) // (lanes * together)
        if not count:
            continue
        with T.serial(count) as i:
            places = [start + (i * together + k) * lanes for k in range(together)]
            indices = [T.Bind(_index(x, position + at, lanes)) for at in places]
            for at, result in zip(places, reader.read(table, indices, lanes), strict=True):
                store(y, target + at, _as(y.dtype, result, lanes), lanes)
        start += count * lanes * together


def _vectors(reader: ByteTable) -> list[tuple[int, int]]:
    """Lanes, and how many such vectors at once, the most first."""
    widest = reader.lanes[0]
    several = [(widest, reader.together)] if reader.together > 1 else []
    return several + [(lanes, 1) for lanes in reader.lanes]


def _as(dtype: str, value: Any, lanes: int) -> Any:
    return value if lanes == 1 else T.reinterpret(vector_type(dtype, lanes), value)


def _by_channel(plan: _Lookup, x: Any, table: Any, y: Any, abi: Abi) -> None:
    image, result = plan.source.image, plan.output.image
    with (
        image_rows(plan.output, y, abi) as (n, h),
        T.serial(image.w) as w,
        T.serial(image.c) as c,
    ):
        code = T.cast(_index(x, image.offset(n, h, w, c)), "int32")
        store(y, result.offset(n, h, w, c), table[c * plan.codes + code], 1)


def _by_element(plan: _Lookup, x: Any, table: Any, y: Any, abi: Abi, *, per_channel: bool) -> None:
    fill_halo(plan.output, y)
    with all_indices(plan.source.shape, abi) as index:
        code = T.cast(_index(x, plan.source.at(index)), "int32")
        first = index[1] * plan.codes if per_channel else 0
        store(y, plan.output.at(index), table[first + code], 1)
