"""What an emitter gets: one node of the INTEGER graph, with storages instead of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxquant.targets import Target
from tvm_backend.kernel import Kernel
from tvm_backend.layout import Flat, Image, Storage, code_offset


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the program.

    Attributes:
        name: Name of the node that produces it.
        shape: Shape in torch's axis order.
        storage: How it lies in memory.
        fill: What its halo holds (stored, not code); None without a halo. Inside some kernels it is
            a scalar expression.
        largest: Largest 8-bit code it can hold.
    """

    name: str
    shape: tuple[int, ...]
    storage: Storage
    fill: Any = None
    largest: int = 255

    def at(self, index: Sequence[Any]) -> Any:
        """Element index in memory of a torch index; works on ints, numpy arrays and TIR."""
        storage = self.storage
        if isinstance(storage, Flat):
            position: Any = 0
            for i, extent in zip(index, self.shape, strict=True):
                position = position * extent + i
            return position
        match index:
            case (n, c, h, w):
                return storage.offset(n, h, w, c)
            case (n, w, c):
                return storage.offset(n, 0, w, c)
            case (n, c):
                return storage.offset(n, 0, 0, c)
            case _:
                raise ValueError(f"rank {len(index)} is no image")

    @property
    def offset(self) -> int:
        """What is added to a code to get the stored value."""
        return code_offset(self.storage.dtype)

    def same_place(self, other: Value) -> bool:
        """Whether every element lies where the other value has it."""
        return self.shape == other.shape and self.storage == other.storage

    @property
    def image(self) -> Image:
        """The storage of a value known to be an Image."""
        if not isinstance(self.storage, Image):
            raise TypeError(f"{self.name} is stored flat")
        return self.storage


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A node of the INTEGER graph, ready to be emitted.

    Attributes:
        node: Name of the node, for kernel constants and errors.
        inputs: The activations among its arguments, in order.
        tensors: Its parameter tensors by argument name.
        numbers: All other arguments by name.
        output: Its result.
        target: The device.
        winograd: Whether the cost model may choose Winograd kernels.
    """

    node: str
    inputs: tuple[Value, ...]
    tensors: Mapping[str, np.ndarray]
    numbers: Mapping[str, Any]
    output: Value
    target: Target
    winograd: bool = True


# A chain: every kernel after the first takes the one before as its first input.
Emitter = Callable[[Call], tuple[Kernel, ...]]


def offsets(value: Value) -> np.ndarray:
    """Element index in memory of every element, in torch's order."""
    return np.asarray(value.at(tuple(np.indices(value.shape, dtype=np.int64)))).reshape(value.shape)
