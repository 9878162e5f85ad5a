"""Program: what is left of a network after lowering - kernel calls in order, and float islands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.fx import GraphModule

from fxquant.targets import Target
from tvm_backend.call import Value
from tvm_backend.kernel import Kernel


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One kernel call.

    Attributes:
        node: Name of the graph node it comes from.
        kernel: The kernel.
        inputs: Names of the values it reads.
        output: Name of the value it makes.
        weights: Weight codes among the kernel's constants, without the padding of their packing.
    """

    node: str
    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    weights: int = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values it makes."""
        return (self.output,)


@dataclass(frozen=True, slots=True, eq=False)
class Island:
    """A subgraph that stays in float.

    Attributes:
        name: Name, unique in the program.
        module: Takes the inputs and returns the outputs as a tuple, float32 in torch's order.
        inputs: Names of the values it reads.
        outputs: Names of the values it makes.
    """

    name: str
    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FloatBorder:
    """How one quantize or dequantize kernel relates codes to floats: `scale * (code - zero_point)`.

    Attributes:
        scale: float32 `[C]`, or `[1]` for all elements.
        stride: Elements from one channel to the next, in torch's order; 1 with one scale.
        zero_point: Code of 0.0; 0 for accumulators.
        bounds: Least and largest code; None for accumulators.
        clamped: Whether the kernel clamps the float result.
    """

    scale: np.ndarray
    stride: int = 1
    zero_point: int = 0
    bounds: tuple[int, int] | None = None
    clamped: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A lowered network.

    Attributes:
        target: The device.
        steps: What is executed, in order.
        values: Every value that has memory of its own, by name.
        constants: Contents of the values that never change, as stored.
        inputs: Names of the network's inputs, in order.
        outputs: Names of the network's outputs, nested as the network returns them.
        shapes: Shape of every output leaf, in order; a view's differs from its value's.
        borders: Of each quantize and dequantize kernel, by the value it makes.
    """

    target: Target
    steps: tuple[Step | Island, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: Any
    shapes: tuple[tuple[int, ...], ...]
    borders: Mapping[str, FloatBorder] = field(default_factory=dict)

    @property
    def kernels(self) -> dict[str, Kernel]:
        """Kernels by name; equal names are equal code."""
        return {step.kernel.name: step.kernel for step in self.steps if isinstance(step, Step)}

    @property
    def kernel_counts(self) -> Counter[str]:
        """How often each kernel is called."""
        return Counter(step.kernel.name for step in self.steps if isinstance(step, Step))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        arrays = [a for s in self.steps if isinstance(s, Step) for a in s.kernel.constants]
        return sum(a.nbytes for a in [*arrays, *self.constants.values()])


def leaves(tree: Any) -> list[str]:
    """The names inside nested tuples, lists and dicts, in order."""
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in leaves(part)]
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    return [tree] if isinstance(tree, str) else []


def rebuild(tree: Any, replacements: Sequence[Any]) -> Any:
    """The tree with its names replaced, in order."""
    remaining = iter(replacements)

    def visit(part: Any) -> Any:
        if isinstance(part, tuple | list):
            return type(part)(visit(p) for p in part)
        if isinstance(part, dict):
            return {key: visit(p) for key, p in part.items()}
        return next(remaining) if isinstance(part, str) else part

    return visit(tree)


def plain_containers(tree: Any) -> Any:
    """The tree with builtin tuples, lists and dicts instead of their subclasses."""
    if isinstance(tree, tuple):
        return tuple(plain_containers(part) for part in tree)
    if isinstance(tree, list):
        return [plain_containers(part) for part in tree]
    if isinstance(tree, dict):
        return {key: plain_containers(part) for key, part in tree.items()}
    return tree
