"""Sums, differences, products and quotients of a float32 value and a constant.

One operation a kernel: a compiler may contract a product and a sum, which rounds once instead of
twice. Both operands lie in torch's order and broadcast; where the constant has an element for a
whole plane or row, or one for each of its elements, these go by vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tvm_backend.call import Call, Value
from tvm_backend.emit.loops import all_indices, for_chunks, load, splat, store
from tvm_backend.emit.naming import kernel_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func

_Operation = Callable[[Any, Any], Any]


def float_arithmetic(operation: _Operation, call: Call) -> tuple[Kernel, ...]:
    """Emitter of an operator function.

    Args:
        operation: `operator.add` or the like.
        call: With two activations, one of them constant, or one and a number `a` or `b`.
    """
    numbers = {key: call.numbers[key] for key in ("a", "b") if key in call.numbers}
    sources = list(call.inputs)
    constants = [np.array([value], np.float32) for value in numbers.values()]
    shapes = [value.shape for value in sources]
    for key in numbers:
        shapes.insert("ab".index(key), ())
    name = kernel_name(
        operation.__name__, call.inputs, call.output, call.target, shapes, sorted(numbers)
    )
    build = partial(_build, name, operation, call, shapes, list(numbers))
    storages = tuple(value.storage for value in sources)
    same = (i for i, value in enumerate(sources) if value.same_place(call.output))
    return (Kernel(name, build, storages, tuple(constants), call.output.storage, tuple(same)),)


def _build(
    name: str, operation: _Operation, call: Call, shapes: Sequence[tuple[int, ...]],
    numbers: Sequence[str], abi: Abi,
) -> Any:  # fmt: skip
    output = call.output
    keys = [key for key in "ab" if key not in numbers]
    params = [
        *(
            Param(key, (value.storage.size,), "float32")
            for key, value in zip(keys, call.inputs, strict=True)
        ),
        *(Param(key, (1,), "float32") for key in numbers),
        Param("y", (output.storage.size,), "float32"),
    ]
    axis = _vector_axis(shapes, output.shape)
    length = math.prod(output.shape[axis:])
    with prim_func(name, params, abi) as (built, p), all_indices(output.shape[:axis], abi) as index:

        def chunk(i: Any, lanes: int) -> None:
            a, b = (
                _operand(p[key], shape, output, index, i, lanes)
                for key, shape in zip("ab", shapes, strict=True)
            )
            store(
                p["y"], _position(output.shape[:axis], index) * length + i, operation(a, b), lanes
            )

        for_chunks(length, chunk)
    return built.func


def _vector_axis(shapes: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> int:
    """First axis from which on every operand has all extents of the result, or one element."""
    axis = len(result)
    while axis > 0:
        trailing = result[axis - 1 :]
        padded = [(1,) * len(result) + shape for shape in shapes]
        tails = [shape[-len(trailing) :] for shape in padded]
        if not all(tail == trailing or math.prod(tail) == 1 for tail in tails):
            break
        axis -= 1
    return axis


def _operand(
    buffer: Any, shape: tuple[int, ...], output: Value, index: Sequence[Any], i: Any, lanes: int
) -> Any:
    """A vector of an operand at `[*index, i]` of the result."""
    leading, trailing = len(index), output.shape[len(index) :]
    padded = (1,) * (len(output.shape) - len(shape)) + shape
    places = [0 if extent == 1 else j for extent, j in zip(padded[:leading], index, strict=True)]
    position = _position(padded[:leading], places)
    if padded[leading:] == trailing:
        return load(buffer, position * math.prod(trailing) + i, lanes)
    return splat(buffer[position], "float32", lanes)


def _position(shape: Sequence[int], index: Sequence[Any]) -> Any:
    position: Any = 0
    for extent, i in zip(shape, index, strict=True):
        position = position * extent + i
    return position
