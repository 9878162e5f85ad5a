"""Kernel: one PrimFunc with its constants; and the two calling conventions it can be built for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from tvm_backend.layout import Flat, Storage
from tvm_backend.tvm_api import IRBuilder, T


class Abi(Enum):
    """Calling convention of a PrimFunc.

    PACKED is called by the Relax VM with tensors and may use TVM's thread pool. BARE takes raw
    pointers, has no undefined symbols and no threads: for standalone binaries.
    """

    PACKED = "packed"
    BARE = "bare"


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One schedule of a kernel: the same results, other code and other packing of constants.

    Attributes:
        name: `<tile>__<idiom>`.
        make: Makes the kernel.
    """

    name: str
    make: Callable[[], Kernel]


@dataclass(frozen=True, slots=True, eq=False)
class Variants:
    """All schedules of a kernel.

    Attributes:
        problem: Describes what they have in common: equal problems have variants of equal names.
        default: Name of the cost model's choice.
        bounds: Smallest and largest element of the first input; the proof that all of them are
            exact rests on it.
        ranked: Makes the list of all, the most promising first.
    """

    problem: str
    default: str
    bounds: tuple[int, int]
    ranked: Callable[[], list[Variant]]

    def by_name(self) -> dict[str, Variant]:
        """All of them by name."""
        return {variant.name: variant for variant in self.ranked()}


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A kernel call without its values.

    Attributes:
        name: Describes the whole structure: kernels of the same name are the same code, and are
            built once. Starts with the grammar `<out>_<in>_<op>__<idiom>`.
        build: Makes the PrimFunc. Parameters in order: inputs, constants, output.
        inputs: Storage of each input value.
        constants: Packed weights, biases, tables.
        output: Storage of the result.
        in_place: Positions of the inputs whose memory the output may take: every element is read
            before the one output element that lies in its place is written.
        workspace: Memory a BARE kernel needs while it runs, parameters after the output; PACKED
            kernels allocate it themselves, where threads need their own once a thread.
        variants: Its schedules, where there are several.
        weight_bits: Bits of a weight code in the first constant; below 8 several share a byte.
    """

    name: str
    build: Callable[[Abi], Any]
    inputs: tuple[Storage, ...]
    constants: tuple[np.ndarray, ...]
    output: Storage
    in_place: tuple[int, ...] = ()
    workspace: tuple[Flat, ...] = ()
    variants: Variants | None = None
    weight_bits: int = 8

    @property
    def workspace_bytes(self) -> tuple[int, ...]:
        """Bytes of every part of the workspace."""
        return tuple(part.size * np.dtype(part.dtype).itemsize for part in self.workspace)

    def scheduled(self, variant: Variant) -> Kernel:
        """This kernel by another schedule, between the same storages."""
        made = variant.make()
        return replace(made, inputs=self.inputs, output=self.output, variants=self.variants)


@dataclass(frozen=True, slots=True)
class Param:
    """Name, shape and type of one kernel parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Built:
    """Filled with the PrimFunc when the `prim_func` block ends."""

    func: Any = None


@contextmanager
def prim_func(
    name: str, params: Sequence[Param], abi: Abi
) -> Iterator[tuple[Built, dict[str, Any]]]:
    """Build a PrimFunc: yields the result holder and the parameters as flat 1-D buffers.

    All parameters are distinct memory (`noalias`).
    """
    built = Built()
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            yield built, _declare(params, abi)
        built.func = builder.get()


def _declare(params: Sequence[Param], abi: Abi) -> dict[str, Any]:
    """Declare all arguments first (the builder demands it), then flat views of them."""
    if abi is Abi.BARE:
        handles = [T.arg(p.name, T.handle(p.dtype)) for p in params]
        return {
            p.name: T.decl_buffer((int(np.prod(p.shape)),), p.dtype, data=handle)
            for p, handle in zip(params, handles, strict=True)
        }
    buffers = [T.arg(p.name, T.buffer(p.shape, p.dtype)) for p in params]
    return {
        p.name: buffer
        if len(p.shape) == 1
        else T.decl_buffer((int(np.prod(p.shape)),), p.dtype, data=buffer.data)
        for p, buffer in zip(params, buffers, strict=True)
    }


def outer_loop(extent: int, abi: Abi) -> Any:
    """The loop to spread over threads, where the ABI has threads."""
    return T.parallel(extent) if abi is Abi.PACKED else T.serial(extent)
