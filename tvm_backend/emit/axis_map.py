"""Copies that treat every axis on its own: slice, pad, gather, zero insertion, layout change.

An axis map gives for each output index the source index, or -1 for the fill value. On images the
channel map is cut into runs that are copied by vectors; maps of the other axes that are not the
identity become int32 tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from fxquant.targets import Target
from tvm_backend.call import Value
from tvm_backend.emit.copies import Chunk, chunks, copy_run
from tvm_backend.emit.fill import fill_halo
from tvm_backend.emit.loops import all_indices, image_rows, splat, store
from tvm_backend.emit.naming import kernel_name
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Image
from tvm_backend.tvm_api import T

FILL = -1
_MOST_RUNS = 16

AxisMap = tuple[int, ...]


def identity(extent: int) -> AxisMap:
    """The map that changes nothing."""
    return tuple(range(extent))


@dataclass(frozen=True, slots=True)
class _Copy:
    """One copy kernel.

    Attributes:
        name: Kernel name.
        source: Input.
        output: Result.
        maps: One map a torch axis.
        fill: Stored value where a map says -1.
        delta: Added to every copied value.
    """

    name: str
    source: Value
    output: Value
    maps: tuple[AxisMap, ...]
    fill: float
    delta: int

    @property
    def tabled(self) -> list[int]:
        """Axes whose map is passed as a table."""
        return [
            axis
            for axis, axis_map in enumerate(self.maps)
            if axis_map != identity(len(axis_map)) and axis != self.run_axis
        ]

    @property
    def run_axis(self) -> int | None:
        """The channel axis, if it is copied by vectors."""
        images = isinstance(self.source.storage, Image) and isinstance(self.output.storage, Image)
        if not images:
            return None
        axis = channel_axis(len(self.maps))
        return axis if len(_runs(self.maps[axis])) <= _MOST_RUNS else None


def channel_axis(rank: int) -> int:
    """The torch axis that is an image's channel axis."""
    return 1 if rank == 4 else rank - 1


def axis_map_kernel(
    op: str, source: Value, output: Value, maps: Sequence[Sequence[int]], target: Target,
    *, fill: float = 0, delta: int = 0,
) -> Kernel:  # fmt: skip
    """Kernel of `output[i, j, ...] = source[maps[0][i], maps[1][j], ...] + delta`.

    Args:
        op: Operator in the kernel's name.
        source: Input.
        output: Result, of the same rank.
        maps: One map a torch axis.
        target: The device.
        fill: Stored value where a map says -1.
        delta: Added to every copied value (a change between stored and plain codes).
    """
    axis_maps = tuple(tuple(int(i) for i in m) for m in maps)
    name = kernel_name(op, (source,), output, target, axis_maps, fill, delta)
    copy = _Copy(name, source, output, axis_maps, fill, delta)
    tables = tuple(np.asarray(axis_maps[axis], np.int32) for axis in copy.tabled)
    return Kernel(name, partial(_build, copy), (source.storage,), tables, output.storage)


def _build(copy: _Copy, abi: Abi) -> Any:
    source, output = copy.source, copy.output
    params = (
        Param("x", (source.storage.size,), source.storage.dtype),
        *(Param(f"map{axis}", (len(copy.maps[axis]),), "int32") for axis in copy.tabled),
        Param("y", (output.storage.size,), output.storage.dtype),
    )
    with prim_func(copy.name, params, abi) as (built, p):

        def source_index(axis: int, i: Any) -> Any:
            return T.Bind(p[f"map{axis}"][i]) if axis in copy.tabled else i

        if copy.run_axis is not None:
            _by_runs(copy, p["x"], p["y"], source_index, abi)
        else:
            _by_element(copy, p["x"], p["y"], source_index, abi)
    return built.func


def _filled(copy: _Copy, axis: int) -> bool:
    return FILL in copy.maps[axis]


def _either(
    conditions: Sequence[Any], then: Callable[[], None], otherwise: Callable[[], None]
) -> None:
    """`then()` where all conditions hold, else `otherwise()`."""
    if not conditions:
        then()
        return
    with T.If(reduce(lambda a, b: T.And(a, b), conditions)):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def _by_element(
    copy: _Copy, x: Any, y: Any, source_index: Callable[[int, Any], Any], abi: Abi
) -> None:
    fill_halo(copy.output, y)
    with all_indices(copy.output.shape, abi) as index:
        source = [source_index(axis, i) for axis, i in enumerate(index)]
        position = copy.output.at(index)

        def copied() -> None:
            value = x[copy.source.at(source)]
            if copy.delta:
                value = T.cast(value, "int32") + copy.delta
            store(y, position, value, 1)

        inside = [source[axis] >= 0 for axis in range(len(index)) if _filled(copy, axis)]
        _either(inside, copied, lambda: store(y, position, splat(copy.fill, y.dtype, 1), 1))


def _runs(axis_map: AxisMap) -> list[tuple[int, int, int]]:
    """Cut a map into `(first output index, first source index or -1, length)`."""
    found: list[tuple[int, int, int]] = []
    for i, j in enumerate(axis_map):
        if found:
            first, start, length = found[-1]
            if (start == j == FILL) or (start != FILL and j == start + length):
                found[-1] = (first, start, length + 1)
                continue
        found.append((i, j, 1))
    return found


def _by_runs(
    copy: _Copy, x: Any, y: Any, source_index: Callable[[int, Any], Any], abi: Abi
) -> None:
    image, result = copy.source.image, copy.output.image
    rank = len(copy.maps)
    axes = {4: (0, 2, 3), 3: (0, None, 1), 2: (0, None, None)}[rank]  # of n, h, w
    pieces: list[tuple[int, int, list[Chunk]]] = [
        (first, start, chunks(
            length, image.channels - max(start, 0), result.channels - first
        ))
        for first, start, length in _runs(copy.maps[channel_axis(rank)])
    ]  # fmt: skip
    everything = chunks(result.c, result.channels, result.channels)

    def convert(vector: Any, lanes: int) -> Any:
        if not copy.delta:
            return vector
        return T.cast(vector, "int32" if lanes == 1 else f"int32x{lanes}") + copy.delta

    def filler(vector: Any, lanes: int) -> Any:
        del vector
        return splat(copy.fill, y.dtype, lanes)

    with image_rows(copy.output, y, abi) as (n, h), T.serial(result.w) as w:
        source = [
            i if axis is None else source_index(axis, i)
            for axis, i in zip(axes, (n, h, w), strict=True)
        ]
        target = result.offset(n, h, w, 0)

        def copied() -> None:
            base = image.offset(source[0], source[1], source[2], 0)
            for first, start, run in pieces:
                if start == FILL:
                    copy_run(y, target + first, y, target + first, run, filler)
                else:
                    copy_run(x, base + start, y, target + first, run, convert)

        inside = [
            i >= 0
            for axis, i in zip(axes, source, strict=True)
            if axis is not None and _filled(copy, axis)
        ]
        _either(inside, copied, lambda: copy_run(y, target, y, target, everything, filler))
