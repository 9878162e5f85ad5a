"""requantize, add and mul: vectors of integers between loads and stores.

Operands broadcast as in torch. 8-bit codes are computed in int16 (`word_requant.py`): images of
equal pixels by whole rows, others by vectors of channels. What has no such vectors goes by narrower
ones in int32 (int64 for 16-bit codes); images of different ranks take one element at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add as add_vectors
from typing import Any

from fxquant.numerics.accumulator import INT32_MAX
from tvm_backend.call import Call, Value
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import (
    all_indices,
    channel_lanes,
    image_rows,
    load,
    load_as,
    pixel_vectors,
    splat,
    store,
)
from tvm_backend.emit.requant import as_int64, scale, to_stored
from tvm_backend.emit.scalars import Scalars, shared_name
from tvm_backend.emit.word_requant import (
    CodeScale,
    WordCompute,
    WordProduct,
    WordRequant,
)
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Image, code_width
from tvm_backend.tvm_api import T

# int32 vectors of stored operands -> int32 vector of the stored result
Compute = Callable[[Sequence[Any]], Any]

# the same on vectors of int16, where it is possible, after it
_Arithmetic = tuple[Compute, WordCompute | None]


def requantize(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.requantize`."""
    numbers, source = call.numbers, call.inputs[0]
    scalars = Scalars.of(call, [numbers["zero_point"]], [numbers["multiplier"]])
    return _sum(call, "requantize", scalars, (numbers["shift"],), [code_bound(source)])


def add(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.add`."""
    numbers, bounds = call.numbers, [code_bound(value) for value in call.inputs]
    scalars = Scalars.of(call, numbers["zero_points"], numbers["multipliers"])
    return _sum(call, "add", scalars, tuple(numbers["shifts"]), bounds)


def _sum(
    call: Call, op: str, scalars: Scalars, shifts: tuple[int, ...], bounds: Sequence[int]
) -> tuple[Kernel, ...]:
    """The kernel of a sum of one or more requantized operands."""

    def arithmetic(s: Scalars) -> _Arithmetic:
        grid = s.grid(call)

        def compute(operands: Sequence[Any]) -> Any:
            scaled = [
                scale(x - zero_point, multiplier, shift, bound, grid.width)
                for x, zero_point, multiplier, shift, bound in zip(
                    operands, s.zero_points, s.multipliers, shifts, bounds, strict=True
                )
            ]
            return to_stored(reduce(add_vectors, scaled), grid)

        scales = tuple(map(CodeScale, s.zero_points, s.multipliers, shifts))
        return compute, WordRequant.of(call.target, scales, grid, _dtypes(call))

    return _kernel(call, op, scalars, arithmetic, shifts)


def mul(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.mul`."""
    numbers, shift = call.numbers, call.numbers["shift"]
    bound = code_bound(call.inputs[0]) * code_bound(call.inputs[1])

    def arithmetic(s: Scalars) -> _Arithmetic:
        grid, (multiplier,) = s.grid(call), s.multipliers

        def compute(operands: Sequence[Any]) -> Any:
            a, b = (x - zp for x, zp in zip(operands, s.zero_points, strict=True))
            acc = a * b if bound <= INT32_MAX else as_int64(a) * as_int64(b)
            return to_stored(scale(acc, multiplier, shift, bound, grid.width), grid)

        return compute, WordProduct.of(
            call.target, s.zero_points, multiplier, shift, grid, _dtypes(call)
        )

    scalars = Scalars.of(call, numbers["zero_points"], [numbers["multiplier"]])
    return _kernel(call, "mul", scalars, arithmetic, shift)


def code_bound(value: Value) -> int:
    """Largest magnitude of `code - zero_point`."""
    return (1 << code_width(value.storage.dtype).bits) - 1


def _dtypes(call: Call) -> list[str]:
    return [v.storage.dtype for v in (*call.inputs, call.output)]


@dataclass(frozen=True, slots=True)
class _Plan:
    """One elementwise kernel, while it is built."""

    inputs: tuple[Value, ...]
    output: Value
    compute: Compute


def _kernel(
    call: Call, op: str, scalars: Scalars, make: Callable[[Scalars], _Arithmetic], shifts: Any
) -> tuple[Kernel, ...]:
    name, output = shared_name(op, call, shifts), call.output
    storages = tuple(v.storage for v in call.inputs)
    in_place = tuple(i for i, v in enumerate(call.inputs) if v.same_place(output))
    build = partial(_build, name, call.inputs, output, scalars, make)
    return (Kernel(name, build, storages, (scalars.constant(),), output.storage, in_place),)


def _build(
    name: str, inputs: tuple[Value, ...], output: Value, scalars: Scalars,
    make: Callable[[Scalars], _Arithmetic], abi: Abi,
) -> Any:  # fmt: skip
    operands = [Param(f"x{i}", (v.storage.size,), v.storage.dtype) for i, v in enumerate(inputs)]
    result = Param("y", (output.storage.size,), output.storage.dtype)
    with prim_func(name, [*operands, scalars.param(), result], abi) as (built, p):
        elements = scalars.read(p["scalars"])
        compute, words = make(elements)
        plan = _Plan(inputs, elements.placed(output), compute)
        buffers, y = [p[param.name] for param in operands], p["y"]
        values = (*inputs, output)
        images = [v.storage for v in values if isinstance(v.storage, Image)]
        ranks = {len(v.shape) for v in values}
        if len(images) != len(values) or len(ranks) > 1:
            _by_element(plan, buffers, y, abi)
        elif words and _rows_in_chunks(words, images):
            _by_words(plan, words, images, buffers, y, abi)
        elif words and _channels_in_chunks(words, images):
            _by_channel_words(plan, words, images, buffers, y, abi)
        elif all(_same_pixels(image, images[-1]) for image in images):
            _by_vector(plan, images, buffers, y, abi)
        else:
            _by_broadcast(plan, images, buffers, y, abi)
    return built.func


def _same_pixels(a: Image, b: Image) -> bool:
    return (a.n, a.h, a.w, a.c) == (b.n, b.h, b.w, b.c)


def _rows_in_chunks(words: WordCompute, images: Sequence[Image]) -> bool:
    """Whether all images have the same rows, of whole vectors."""
    first = images[0]
    same = all(_same_pixels(i, first) and i.channels == first.channels for i in images)
    return same and first.w * first.channels % words.chunks()[-1] == 0


def _by_words(
    plan: _Plan, words: WordCompute, images: Sequence[Image], buffers: Sequence[Any], y: Any,
    abi: Abi,
) -> None:  # fmt: skip
    length = images[0].w * images[0].channels
    with image_rows(plan.output, y, abi) as (n, h):
        origins = [image.offset(n, h, 0, 0) for image in images]
        for start, count, lanes in _chunks(words, length):
            with T.serial(count) as i:
                at = start + i * lanes
                pairs = zip(buffers, origins[:-1], strict=True)
                codes = [load(buffer, origin + at, lanes) for buffer, origin in pairs]
                store(y, origins[-1] + at, words.apply(codes, lanes), lanes)


def _chunks(words: WordCompute, length: int) -> Iterator[tuple[int, int, int]]:
    """First element, number and lanes of the chunks that cover a length, largest first."""
    start = 0
    for lanes in words.chunks():
        count = (length - start) // lanes
        if count:
            yield start, count, lanes
        start += count * lanes


def _channels_in_chunks(words: WordCompute, images: Sequence[Image]) -> bool:
    """Whether all images have the same channels, in pixels of whole vectors."""
    first = images[0]
    same = all((image.c, image.channels) == (first.c, first.channels) for image in images)
    return same and first.channels % words.chunks()[-1] == 0


def _by_channel_words(
    plan: _Plan, words: WordCompute, images: Sequence[Image], buffers: Sequence[Any], y: Any,
    abi: Abi,
) -> None:  # fmt: skip
    """Chunks of channels, each for all pixels of a row: what they share is loaded once."""
    out = images[-1]

    def operand(image: Image, buffer: Any, at: tuple[Any, ...], lanes: int) -> Any:
        return T.Bind(load(buffer, _broadcast_offset(image, *at), lanes))

    with image_rows(plan.output, y, abi) as (n, h):
        for start, count, lanes in _chunks(words, out.channels):
            with T.serial(count) as i:
                c = start + i * lanes
                pairs = list(zip(images[:-1], buffers, strict=True))
                shared = {
                    b: operand(image, b, (n, h, 0, c), lanes) for image, b in pairs if image.w == 1
                }
                with T.serial(out.w) as w:
                    codes = [
                        shared[b] if b in shared else operand(image, b, (n, h, w, c), lanes)
                        for image, b in pairs
                    ]
                    store(y, out.offset(n, h, w, c), words.apply(codes, lanes), lanes)


def _by_vector(
    plan: _Plan, images: Sequence[Image], buffers: Sequence[Any], y: Any, abi: Abi
) -> None:
    with (
        image_rows(plan.output, y, abi) as (n, h),
        pixel_vectors(images, n, h) as (positions, lanes),
    ):
        operands = [
            load_as(b, p, "int32", lanes) for b, p in zip(buffers, positions[:-1], strict=True)
        ]
        store(y, positions[-1], plan.compute(operands), lanes)


def _by_broadcast(
    plan: _Plan, images: Sequence[Image], buffers: Sequence[Any], y: Any, abi: Abi
) -> None:
    out = images[-1]
    lanes = channel_lanes(*(i for i in images if i.c == out.c))

    def operand(image: Image, buffer: Any, n: Any, h: Any, w: Any, c: Any) -> Any:
        if image.c == 1 and out.c != 1:
            element = buffer[_broadcast_offset(image, n, h, w, 0)]
            return splat(T.cast(element, "int32"), "int32", lanes)
        return load_as(buffer, _broadcast_offset(image, n, h, w, c), "int32", lanes)

    with (
        image_rows(plan.output, y, abi) as (n, h),
        T.serial(out.w) as w,
        T.serial(-(-out.c // lanes)) as v,
    ):
        pairs = zip(images[:-1], buffers, strict=True)
        operands = [operand(image, b, n, h, w, v * lanes) for image, b in pairs]
        store(y, out.offset(n, h, w, v * lanes), plan.compute(operands), lanes)


def _broadcast_offset(image: Image, n: Any, h: Any, w: Any, c: Any) -> Any:
    """Where an operand has the pixel of a result; an extent of 1 is repeated."""
    n, h, w = (0 if e == 1 else i for e, i in ((image.n, n), (image.h, h), (image.w, w)))
    return image.offset(n, h, w, c)


def _by_element(plan: _Plan, buffers: Sequence[Any], y: Any, abi: Abi) -> None:
    fill_halo(plan.output, y)
    with all_indices(plan.output.shape, abi) as index:
        operands = [
            T.cast(buffer[value.at(broadcast(value.shape, index))], "int32")
            for value, buffer in zip(plan.inputs, buffers, strict=True)
        ]
        store(y, plan.output.at(index), plan.compute(operands), 1)


def broadcast(shape: tuple[int, ...], index: Sequence[Any]) -> list[Any]:
    """Index of an operand for a result index, as torch broadcasts."""
    trailing = index[len(index) - len(shape) :]
    return [0 if extent == 1 else i for extent, i in zip(shape, trailing, strict=True)]
