"""Inputs and outputs of a standalone library, each as float32 and as the codes behind it.

The first kernel of a network quantizes its input and the last one dequantizes its output. A caller
that has codes replaces these kernels by copies between plain codes in torch's order and the storage
of the target; everything between is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvm_backend.call import Value
from tvm_backend.emit.axis_map import axis_map_kernel, identity
from tvm_backend.kernel import Kernel
from tvm_backend.layout import Flat
from tvm_backend.program import FloatBorder, Program, Step, leaves
from tvm_backend.signature import TensorSpec, signature_of

# Type of plain codes, by the signed type they are stored as.
_PLAIN = {"int8": "uint8", "int16": "uint16"}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One input or output.

    Attributes:
        spec: Name, shape, and type in `run`.
        quantized: Type in `run_quantized`.
        border: How codes relate to floats; None if the tensor is the same in both calls.
        step: Index of the step that `copy` replaces in `run_quantized`, or None.
        copy: Kernel between plain codes and the target's storage.
    """

    spec: TensorSpec
    quantized: str
    border: FloatBorder | None = None
    step: int | None = None
    copy: Kernel | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.spec.shape)

    @property
    def quantized_bytes(self) -> int:
        """Bytes in `run_quantized`."""
        return self.elements * np.dtype(self.quantized).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Interface:
    """All inputs and outputs, in the order of the model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def replacements(self) -> dict[int, Kernel]:
        """Step -> the kernel that `run_quantized` calls instead."""
        return {
            t.step: t.copy
            for t in (*self.inputs, *self.outputs)
            if t.step is not None and t.copy is not None
        }


def interface(program: Program) -> Interface:
    """The inputs and outputs of a program without float islands."""
    signature = signature_of(program)
    return Interface(
        tuple(_input(program, spec) for spec in signature.inputs),
        tuple(_output(program, spec) for spec in signature.outputs),
    )


def _input(program: Program, spec: TensorSpec) -> Tensor:
    readers = [i for i, step in enumerate(program.steps) if spec.name in step.inputs]
    if len(readers) == 1 and spec.name not in leaves(program.outputs):
        step = program.steps[readers[0]]
        border = program.borders.get(step.outputs[0])
        if isinstance(step, Step) and border is not None and spec.dtype == "float32":
            stored = program.values[step.output]
            plain = _plain(stored)
            copy = _copy(program, "encode", plain, stored, stored.offset)
            return Tensor(spec, plain.storage.dtype, border, readers[0], copy)
    return Tensor(spec, spec.dtype)


def _output(program: Program, spec: TensorSpec) -> Tensor:
    border = program.borders.get(spec.name)
    makers = [i for i, step in enumerate(program.steps) if spec.name in step.outputs]
    read = any(spec.name in step.inputs for step in program.steps)
    if border is None or border.clamped or read or spec.dtype != "float32":
        return Tensor(spec, spec.dtype)
    step = program.steps[makers[0]]
    stored = program.values[step.inputs[0]]
    plain = _plain(stored)
    copy = _copy(program, "decode", stored, plain, -stored.offset)
    return Tensor(spec, plain.storage.dtype, border, makers[0], copy)


def _plain(stored: Value) -> Value:
    """The value as the outside sees it: row-major, plain codes."""
    dtype = stored.storage.dtype
    return Value(f"{stored.name}_plain", stored.shape, Flat(stored.shape, _PLAIN.get(dtype, dtype)))


def _copy(program: Program, op: str, source: Value, output: Value, delta: int) -> Kernel:
    maps = [identity(extent) for extent in output.shape]
    return axis_map_kernel(op, source, output, maps, program.target, delta=delta)
