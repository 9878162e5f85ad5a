"""Convolutions and linear layers: calls of the graph -> problems of the kernel generators."""

from __future__ import annotations

import math
from dataclasses import replace

from tvm_backend.call import Call, Value
from tvm_backend.emit.axis_map import FILL, axis_map_kernel, identity
from tvm_backend.emit.conv import conv2d_accumulate_kernel, conv2d_kernel
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputGrid, Residual
from tvm_backend.emit.linear import linear_accumulate_kernel, linear_kernel
from tvm_backend.emit.shape import reshape_kernel
from tvm_backend.kernel import Kernel
from tvm_backend.layout import Halo, image


def conv2d(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.conv2d`."""
    numbers = call.numbers
    residual = None
    if len(call.inputs) > 1:
        residual = Residual(
            call.inputs[1].image, numbers["residual_zero_point"],
            numbers["residual_multiplier"], numbers["residual_shift"],
        )  # fmt: skip
    problem = replace(_problem(call), residual=residual)
    return (_quantized(problem, call),)


def conv2d_accumulate(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.conv2d_accumulate`."""
    return (_accumulated(_problem(call), call),)


def conv_transpose2d(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.conv_transpose2d`: zero insertion, then a convolution."""
    insertion, problem = _stuffed(call)
    return (insertion, _quantized(problem, call))


def conv_transpose2d_accumulate(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.conv_transpose2d_accumulate`."""
    insertion, problem = _stuffed(call)
    return (insertion, _accumulated(problem, call))


def linear(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.linear`; ranks other than 2 and 3 are copied to a matrix and back."""
    before, source, output, after = _rows(call)
    numbers = call.numbers
    kernel = linear_kernel(
        source.image, output.image, _grid(call),
        input_zero_point=numbers["input_zero_point"], weight=call.tensors["weight"],
        bias=call.tensors["bias"], multiplier=call.tensors["multiplier"],
        shift=call.tensors["shift"], target=call.target, input_qmax=call.inputs[0].largest,
    )  # fmt: skip
    return (*before, kernel, *after)


def linear_accumulate(call: Call) -> tuple[Kernel, ...]:
    """Emitter of `reference.linear_accumulate`."""
    before, source, output, after = _rows(call)
    kernel = linear_accumulate_kernel(
        source.image, output.image, input_zero_point=call.numbers["input_zero_point"],
        weight=call.tensors["weight"], bias=call.tensors["bias"], target=call.target,
        input_qmax=call.inputs[0].largest,
    )  # fmt: skip
    return (*before, kernel, *after)


def _grid(call: Call) -> OutputGrid:
    numbers = call.numbers
    return OutputGrid(numbers["output_zero_point"], numbers["qmin"], numbers["qmax"])


def _problem(call: Call) -> ConvProblem:
    numbers = call.numbers
    return ConvProblem(
        source=call.inputs[0].image,
        output=call.output.image,
        kernel=tuple(call.tensors["weight"].shape[2:]),
        stride=tuple(numbers["stride"]),
        padding=tuple(numbers["padding"]),
        dilation=tuple(numbers["dilation"]),
        groups=numbers["groups"],
        input_zero_point=numbers["input_zero_point"],
        output_zero_point=numbers.get("output_zero_point", 0),
        qmin=numbers.get("qmin", 0),
        qmax=numbers.get("qmax", 255),
        input_qmax=call.inputs[0].largest,
    )


def _quantized(problem: ConvProblem, call: Call) -> Kernel:
    tensors = call.tensors
    return conv2d_kernel(
        problem, weight=tensors["weight"], bias=tensors["bias"],
        multiplier=tensors["multiplier"], shift=tensors["shift"], target=call.target,
        winograd=call.winograd,
    )  # fmt: skip


def _accumulated(problem: ConvProblem, call: Call) -> Kernel:
    tensors = call.tensors
    return conv2d_accumulate_kernel(
        problem, weight=tensors["weight"], bias=tensors["bias"], target=call.target,
        winograd=call.winograd,
    )  # fmt: skip


def _stuffed(call: Call) -> tuple[Kernel, ConvProblem]:
    """The zero-insertion kernel and the stride-1 convolution that follows it."""
    source, numbers = call.inputs[0], call.numbers
    n, c, h, w = source.shape
    (sh, sw), padding = numbers["stride"], numbers["padding"]
    rows = _insertion(h, sh, padding[0], padding[1])
    cols = _insertion(w, sw, padding[2], padding[3])
    halo: Halo = tuple(max(p, 0) for p in padding)  # type: ignore[assignment]
    shape = (n, c, len(rows), len(cols))
    zero_point = numbers["input_zero_point"] + source.offset
    stuffed = Value(
        f"{call.node}_stuffed", shape, image(shape, source.storage.dtype, halo), zero_point
    )
    kernel = axis_map_kernel(
        "zero_insertion", source, stuffed, [identity(n), identity(c), rows, cols],
        call.target, fill=zero_point,
    )  # fmt: skip
    problem = ConvProblem(
        source=stuffed.image,
        output=call.output.image,
        kernel=tuple(call.tensors["weight"].shape[2:]),
        padding=halo,
        dilation=tuple(numbers["dilation"]),
        groups=numbers["groups"],
        input_zero_point=numbers["input_zero_point"],
        output_zero_point=numbers.get("output_zero_point", 0),
        qmin=numbers.get("qmin", 0),
        qmax=numbers.get("qmax", 255),
        input_qmax=max(source.largest, numbers["input_zero_point"]),
    )
    return kernel, problem


def _insertion(extent: int, stride: int, before: int, after: int) -> list[int]:
    """Source index of every stuffed index; negative padding crops."""
    full = [i // stride if i % stride == 0 else FILL for i in range((extent - 1) * stride + 1)]
    return full[max(-before, 0) : len(full) - max(-after, 0)]


def _rows(call: Call) -> tuple[list[Kernel], Value, Value, list[Kernel]]:
    """Input and output as images whose channel axis is torch's last axis."""
    source, output = call.inputs[0], call.output
    if len(source.shape) in (2, 3):
        return [], source, output, []
    count = math.prod(source.shape[:-1])
    x_shape, y_shape = (count, source.shape[-1]), (count, output.shape[-1])
    x = Value(f"{call.node}_rows", x_shape, image(x_shape, source.storage.dtype))
    y = Value(f"{call.node}_result", y_shape, image(y_shape, output.storage.dtype))
    return [reshape_kernel(source, x, call)], x, y, [reshape_kernel(y, output, call)]
