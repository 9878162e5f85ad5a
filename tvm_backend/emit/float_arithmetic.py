"""Sums, differences, products and quotients of a float32 value and a constant.

One operation a kernel: a compiler may contract a product and a sum, which rounds once instead of
twice. Both operands lie in torch's order and broadcast; where the constant has an element for a
whole plane or row, or one for each of its elements, these go by vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tvm_backend.call import Call, Value
from tvm_backend.emit.elementwise import broadcast
from tvm_backend.emit.loops import all_indices, for_chunks, load, splat, store
from tvm_backend.emit.naming import kernel_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Flat

_Operation = Callable[[Any, Any], Any]


def float_arithmetic(operation: _Operation, call: Call) -> tuple[Kernel, ...]:
    """Emitter of an operator function.

    Args:
        operation: `operator.add` or the like.
        call: With two activations, one of them constant, or one and a number `a` or `b`.
    """
    numbers = {key: call.numbers[key] for key in "ab" if key in call.numbers}
    values = iter(call.inputs)
    operands = {key: _number(key) if key in numbers else next(values) for key in "ab"}
    name = kernel_name(operation.__name__, call.inputs, call.output, call.target, sorted(numbers))
    build = partial(_build, name, operation, operands, sorted(numbers), call.output)
    storages = tuple(value.storage for value in call.inputs)
    constants = tuple(np.array([number], np.float32) for number in numbers.values())
    in_place = tuple(i for i, v in enumerate(call.inputs) if v.same_place(call.output))
    return (Kernel(name, build, storages, constants, call.output.storage, in_place),)


def _number(name: str) -> Value:
    return Value(name, (), Flat((), "float32"))


def _build(
    name: str, operation: _Operation, operands: Mapping[str, Value], numbers: Sequence[str],
    output: Value, abi: Abi,
) -> Any:  # fmt: skip
    keys = [*(key for key in operands if key not in numbers), *numbers]
    params = [
        *(Param(key, (operands[key].storage.size,), "float32") for key in keys),
        Param("y", (output.storage.size,), "float32"),
    ]
    axis = _vector_axis([value.shape for value in operands.values()], output.shape)
    trailing = output.shape[axis:]
    with prim_func(name, params, abi) as (built, p), all_indices(output.shape[:axis], abi) as index:
        first = [*index, *(0 for _ in trailing)]

        def operand(key: str, i: Any, lanes: int) -> Any:
            value = operands[key]
            position = value.at(broadcast(value.shape, first))
            own = value.shape[max(len(value.shape) - len(trailing), 0) :]
            if math.prod(own) == math.prod(trailing):
                return load(p[key], position + i, lanes)
            return splat(p[key][position], "float32", lanes)

        def chunk(i: Any, lanes: int) -> None:
            result = operation(*(operand(key, i, lanes) for key in operands))
            store(p["y"], output.at(first) + i, result, lanes)

        for_chunks(math.prod(trailing), chunk)
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
