"""Signature: names, shapes and types of a compiled network's inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import ConfigError
from tvm_backend.program import Program, leaves, rebuild

Array = Tensor | np.ndarray


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Its name.
        shape: Compiled shape.
        dtype: Type, as numpy and torch spell it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs, outputs, and how the outputs are nested.

    Attributes:
        inputs: In calling order.
        outputs: Leaves in order.
        structure: Nested containers with a name for every leaf.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Any

    def nest(self, results: Sequence[Any]) -> Any:
        """Arrange output leaves as the network returns them."""
        return rebuild(self.structure, results)

    def slices(self, inputs: Sequence[Tensor]) -> int:
        """How many times the compiled batch the inputs are.

        Raises:
            ConfigError: Number, shape or type of the inputs is wrong.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise ConfigError(
                f"{len(inputs)} inputs given, {len(self.inputs)} needed",
                remedy=f"pass one tensor for each of: {names}",
            )
        counts = {_slices(spec, x) for spec, x in zip(self.inputs, inputs, strict=True)}
        if len(counts) > 1:
            raise ConfigError(
                "the inputs have different batch sizes",
                why=f"multiples of the compiled batch: {sorted(counts)}",
                remedy="pass inputs of one batch size",
            )
        count = counts.pop() if counts else 1
        if count > 1:
            self._check_batched()
        return count

    def _check_batched(self) -> None:
        batch = self.inputs[0].shape[0]
        for spec in (*self.inputs, *self.outputs):
            if not spec.shape or spec.shape[0] != batch:
                raise ConfigError(
                    f"{spec.name} of shape {spec.shape} has no batch axis of {batch}",
                    why="only networks whose inputs and outputs all have the batch first can be "
                    "run on another batch size",
                    remedy=f"pass inputs of batch size {batch}",
                )


def _slices(spec: TensorSpec, x: Tensor) -> int:
    where = f"input {spec.name}"
    if str(x.dtype) != f"torch.{spec.dtype}":
        raise ConfigError(
            f"input of type {str(x.dtype).removeprefix('torch.')}, not {spec.dtype}",
            where=where,
            remedy=f"convert it to {spec.dtype}",
        )
    shape = tuple(x.shape)
    if shape == spec.shape:
        return 1
    rest_fits = len(shape) == len(spec.shape) > 0 and shape[1:] == spec.shape[1:]
    if rest_fits and shape[0] > 0 and shape[0] % spec.shape[0] == 0:
        return shape[0] // spec.shape[0]
    why = f"the network was compiled for shape {spec.shape}"
    remedy = f"pass shape {spec.shape}"
    if rest_fits:
        remedy = f"pass a batch that is a multiple of {spec.shape[0]}, or compile for this one"
    raise ConfigError(f"input of shape {shape}", where=where, why=why, remedy=remedy)


def as_tensor(x: object, position: int) -> Tensor:
    """A torch tensor on the CPU that shares the memory of `x` where it can.

    Raises:
        ConfigError: `x` is neither a numpy array of numbers nor a dense torch tensor on the CPU.
    """
    if isinstance(x, np.ndarray):
        shared = x.flags.writeable and all(stride >= 0 for stride in x.strides)
        try:
            return torch.from_numpy(x if shared else x.copy())
        except (TypeError, ValueError) as error:  # strings, foreign byte orders
            raise ConfigError(
                f"input {position} is an array of type {x.dtype}",
                why=str(error),
                remedy="convert it to the type the network was compiled for",
            ) from error
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise ConfigError(f"input {position} is sparse", remedy="call .to_dense() first")
        if x.device.type != "cpu":
            raise ConfigError(
                f"input {position} is on {x.device}",
                why="compiled networks run on the CPU",
                remedy="call .cpu() first",
            )
        return x.detach()
    raise ConfigError(
        f"input {position} is a {type(x).__name__}",
        remedy="pass torch tensors or numpy arrays",
    )


def signature_of(program: Program) -> Signature:
    """The signature of a lowered network."""
    inputs = tuple(
        TensorSpec(name, program.values[name].shape, program.values[name].storage.dtype)
        for name in program.inputs
    )
    outputs = tuple(
        TensorSpec(name, shape, program.values[name].storage.dtype)
        for name, shape in zip(leaves(program.outputs), program.shapes, strict=True)
    )
    return Signature(inputs, outputs, program.outputs)
