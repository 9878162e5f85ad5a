"""concat: every operand is moved to the output grid on its way to its place.

On the channel axis of images the operands of a pixel are written one after the other, by
vectors; an operand already on the output grid is copied as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from fxquant.numerics import reference
from tvm_backend.call import Call, Value
from tvm_backend.emit.axis_map import channel_axis
from tvm_backend.emit.copies import CONVERTED_LANES, COPIED_LANES, Convert, chunks, copy_run
from tvm_backend.emit.elementwise import code_bound
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import all_indices, image_rows, store, vector_type
from tvm_backend.emit.requant import Grid, scale, to_stored
from tvm_backend.emit.scalars import Scalars, shared_name
from tvm_backend.emit.word_requant import CodeScale, WordRequant
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Image, code_width
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class _Operand:
    """What is code in the requantization of one operand.

    Attributes:
        shift: s.
        bound: Largest magnitude of `code - zero_point`.
        exact: Whether the requantization maps every code to itself.
    """

    shift: int
    bound: int
    exact: bool


def concat(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.concat`."""
    numbers = call.numbers
    axis = numbers["axis"] % len(call.output.shape)
    requantizations = zip(
        numbers["zero_points"], numbers["multipliers"], numbers["shifts"], strict=True
    )
    operands = tuple(
        _Operand(s, code_bound(value), _is_identity(call, value, zero_point, m, s))
        for value, (zero_point, m, s) in zip(call.inputs, requantizations, strict=True)
    )
    scalars = Scalars.of(call, numbers["zero_points"], numbers["multipliers"])
    name = shared_name("concat", call, axis, operands)
    build = partial(_build, name, call, axis, scalars, operands)
    storages = tuple(v.storage for v in call.inputs)
    return (Kernel(name, build, storages, (scalars.constant(),), call.output.storage),)


def _is_identity(call: Call, value: Value, zero_point: int, multiplier: int, shift: int) -> bool:
    if value.storage.dtype != call.output.storage.dtype:
        return False
    width = code_width(value.storage.dtype)
    codes = torch.arange(1 << width.bits, dtype=torch.int32).to(width.codes)
    moved = reference.requantize(
        codes, zero_point=zero_point, multiplier=multiplier, shift=shift,
        output_zero_point=call.numbers["output_zero_point"],
        qmin=call.numbers["qmin"], qmax=call.numbers["qmax"], width=width.bits,
    )  # fmt: skip
    return bool((moved == codes).all())


def _converters(call: Call, operands: Sequence[_Operand], s: Scalars) -> list[Convert | None]:
    parts = zip(call.inputs, operands, s.zero_points, s.multipliers, strict=True)
    return [
        None if o.exact else _converter(call, v, o, zp, m, s.grid(call)) for v, o, zp, m in parts
    ]


def _converter(
    call: Call, value: Value, operand: _Operand, zero_point: Any, multiplier: Any, grid: Grid
) -> Convert:
    code_scale = CodeScale(zero_point, multiplier, operand.shift)
    dtypes = [value.storage.dtype, call.output.storage.dtype]
    words = WordRequant.of(call.target, [code_scale], grid, dtypes)

    def convert(vector: Any, lanes: int) -> Any:
        if words and lanes in words.chunks():
            return words.apply([vector], lanes)
        codes = T.cast(vector, vector_type("int32", lanes)) - zero_point
        scaled = scale(codes, multiplier, operand.shift, operand.bound, grid.width)
        return to_stored(scaled, grid)

    return convert


def _build(
    name: str, call: Call, axis: int, scalars: Scalars, operands: Sequence[_Operand], abi: Abi
) -> Any:
    inputs, storage = call.inputs, call.output.storage
    params = [
        *(Param(f"x{i}", (v.storage.size,), v.storage.dtype) for i, v in enumerate(inputs)),
        scalars.param(),
        Param("y", (storage.size,), storage.dtype),
    ]
    starts = list(accumulate((v.shape[axis] for v in inputs), initial=0))
    images = all(isinstance(v.storage, Image) for v in (*inputs, call.output))
    with prim_func(name, params, abi) as (built, p):
        elements = scalars.read(p["scalars"])
        converters, output = _converters(call, operands, elements), elements.placed(call.output)
        buffers = [p[f"x{i}"] for i in range(len(inputs))]
        if images and axis == channel_axis(len(output.shape)):
            _channels(inputs, buffers, output, p["y"], starts, converters, abi)
        else:
            fill_halo(output, p["y"])
            for value, x, start, convert in zip(inputs, buffers, starts, converters, strict=False):
                _elements(value, x, output, p["y"], _shifted(axis, start), convert, abi)
    return built.func


def _channels(
    inputs: tuple[Value, ...], buffers: list[Any], output: Value, y: Any, starts: list[int],
    converters: list[Convert | None], abi: Abi,
) -> None:  # fmt: skip
    result = output.image
    with image_rows(output, y, abi) as (n, h), T.serial(result.w) as w:
        target = result.offset(n, h, w, 0)
        for value, x, start, convert in zip(inputs, buffers, starts, converters, strict=False):
            image = value.image
            widest = COPIED_LANES if convert is None else CONVERTED_LANES
            run = chunks(image.c, image.channels, result.channels - start, widest)
            copy_run(x, image.offset(n, h, w, 0), y, target + start, run, convert)


def _shifted(axis: int, start: int) -> Callable[[tuple[Any, ...]], list[Any]]:
    return lambda index: [i + start if a == axis else i for a, i in enumerate(index)]


def _elements(
    value: Value, x: Any, output: Value, y: Any,
    target: Callable[[tuple[Any, ...]], list[Any]], convert: Convert | None, abi: Abi,
) -> None:  # fmt: skip
    with all_indices(value.shape, abi) as index:
        element = x[value.at(index)]
        store(y, output.at(target(index)), convert(element, 1) if convert else element, 1)
