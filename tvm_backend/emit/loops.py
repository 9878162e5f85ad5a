"""Loops over images: rows spread over threads, vectors of up to 16 elements inside a row.

Vectors may run over an image's padding channels (their contents are free) but never over the
end of a pixel. 16 lanes are one AVX-512 register of int32 or four NEON registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm_backend.call import Value
from tvm_backend.kernel import Abi
from tvm_backend.layout import Image
from tvm_backend.tvm_api import T

MAX_LANES = 16
_HALF = 24  # bits of the lower part of an int64 on its way to float64
_PARALLEL_ELEMENTS = 1 << 15  # below, waking the threads costs more than the work


def spread_loop(extent: int, elements: int, abi: Abi) -> Any:
    """A loop over threads if the work (in elements) is worth it, else a plain loop."""
    parallel = abi is Abi.PACKED and elements >= _PARALLEL_ELEMENTS and extent > 1
    return T.parallel(extent) if parallel else T.serial(extent)


def splat(value: Any, dtype: str, lanes: int) -> Any:
    """A scalar in every lane."""
    scalar = T.cast(value, dtype) if not isinstance(value, (int, float)) else _literal(value, dtype)
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def _literal(value: float, dtype: str) -> Any:
    makers = {
        "int8": T.int8, "uint8": T.uint8, "int16": T.int16, "uint16": T.uint16, "int32": T.int32,
        "int64": T.int64, "float32": T.float32, "float64": T.float64,
    }  # fmt: skip
    return makers[dtype](value)


def vector_type(dtype: str, lanes: int) -> str:
    """Name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def load(buffer: Any, position: Any, lanes: int, stride: int = 1) -> Any:
    """`lanes` elements from `position`."""
    return buffer[position] if lanes == 1 else buffer[T.ramp(position, stride, lanes)]


def store(buffer: Any, position: Any, value: Any, lanes: int, stride: int = 1) -> None:
    """Write `lanes` elements from `position`, converted to the buffer's type."""
    value = T.cast(value, vector_type(buffer.dtype, lanes))
    T.buffer_store(buffer, value, [position if lanes == 1 else T.ramp(position, stride, lanes)])


def load_as(buffer: Any, position: Any, dtype: str, lanes: int) -> Any:
    """`load`, converted to `dtype`."""
    return T.cast(load(buffer, position, lanes), vector_type(dtype, lanes))


def to_float32(value: Any, lanes: int) -> Any:
    """Integers to float32 with one rounding.

    int64 below 2^53 goes by way of float64, in two halves: few machines convert int64 vectors.
    """
    if str(value.ty).startswith("int64"):
        double, half = vector_type("float64", lanes), vector_type("int32", lanes)
        low = T.cast(T.cast(value & ((1 << _HALF) - 1), half), double)
        high = T.cast(T.cast(value >> _HALF, half), double)
        value = high * splat(float(1 << _HALF), "float64", lanes) + low
    return T.cast(value, vector_type("float32", lanes))


def fill(buffer: Any, position: Any, count: int, value: Any) -> None:
    """Set `count` elements to one value, an integer or a scalar expression."""
    lanes = math.gcd(count, 64)
    if not count:
        return
    with T.serial(count // lanes) as i:
        store(buffer, position + i * lanes, splat(value, buffer.dtype, lanes), lanes)


@contextmanager
def image_rows(output: Value, buffer: Any, abi: Abi) -> Iterator[tuple[Any, Any]]:
    """Loop over the rows of all images of `output`, writing its halo on the way.

    Yields:
        `(n, h)`.
    """
    image = output.image
    top, bottom, left, right = image.halo
    value = 0 if output.fill is None else output.fill
    if top or bottom:
        with T.serial(image.n) as n:
            fill(buffer, n * image.image_stride, top * image.row_stride, value)
            below = (top + image.h) * image.row_stride
            fill(buffer, n * image.image_stride + below, bottom * image.row_stride, value)
    with spread_loop(image.n * image.h, image.size, abi) as i:
        n, h = (i // image.h, i % image.h) if image.n > 1 else (0, i)
        fill(buffer, image.offset(n, h, -left, 0), left * image.channels, value)
        fill(buffer, image.offset(n, h, image.w, 0), right * image.channels, value)
        yield n, h


@contextmanager
def pixel_vectors(images: Sequence[Image], n: Any, h: Any) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Loop over all vectors of row `h` of images of equal shape.

    Yields:
        The element position in every image, and the number of lanes.
    """
    first = images[0]
    if len({i.channels for i in images}) == 1:
        lanes = math.gcd(first.w * first.channels, MAX_LANES)
        with T.serial(first.w * first.channels // lanes) as j:
            yield tuple(i.offset(n, h, 0, 0) + j * lanes for i in images), lanes
    else:
        lanes = channel_lanes(*images)
        with T.serial(first.w) as w, T.serial(-(-first.c // lanes)) as v:
            yield tuple(i.offset(n, h, w, v * lanes) for i in images), lanes


def channel_lanes(*images: Image) -> int:
    """The widest vector that stays inside the pixels of all images."""
    return math.gcd(MAX_LANES, *(i.channels for i in images))


def clip(value: Any, lower: Any, upper: Any) -> Any:
    """Elementwise clamp."""
    return T.max(T.min(value, upper), lower)


def for_chunks(extent: int, body: Callable[[Any, int], None], lanes: int = MAX_LANES) -> None:
    """Cover `0..extent` by vectors: full ones in a loop, then ever narrower ones.

    Args:
        extent: Elements.
        body: Called with the first element and the number of lanes.
        lanes: Widest vector, a power of two.
    """
    if extent >= lanes:
        with T.serial(extent // lanes) as i:
            body(i * lanes, lanes)
    start = extent // lanes * lanes
    while start < extent:
        lanes //= 2
        if extent - start >= lanes:
            body(start, lanes)
            start += lanes


@contextmanager
def all_indices(shape: Sequence[int], abi: Abi) -> Iterator[tuple[Any, ...]]:
    """Nested loops over every index of a torch shape, the outermost spread over threads."""
    with ExitStack() as stack:
        index = []
        for axis, extent in enumerate(shape):
            loop = T.serial(extent) if axis else spread_loop(extent, math.prod(shape), abi)
            index.append(stack.enter_context(loop))
        yield tuple(index)
