"""The transforms of a Winograd kernel: of inputs, and of sums.

All work on vectors of channels; the arithmetic itself is that of `tvm_backend/winograd.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm_backend.emit.conv_plane import Plane
from tvm_backend.layout import Image
from tvm_backend.macs.vector import constant, load, loop, store
from tvm_backend.schedule.winograd import WinogradPlan
from tvm_backend.tvm_api import T
from tvm_backend.winograd import both_axes


@dataclass(frozen=True, slots=True)
class Transforms:
    """Transforms of one kernel.

    Attributes:
        plane: The convolution.
        lanes: Output channels of a vector.
        plan: Blocking.
    """

    plane: Plane
    lanes: int
    plan: WinogradPlan

    @property
    def output(self) -> Image:
        """Storage of the result."""
        return self.plane.problem.output

    @property
    def points(self) -> int:
        """Elements of a transformed tile: as many matrix products."""
        return self.plan.size.size**2

    @property
    def rows(self) -> int:
        """Tiles along the height of an image."""
        return -(-self.output.h // self.plan.size.m)

    @property
    def cols(self) -> int:
        """Tiles along its width."""
        return -(-self.output.w // self.plan.size.m)

    def place(self, tile: Any) -> tuple[Any, Any, Any]:
        """Image, first row and first column of a tile's outputs."""
        m, per_image = self.plan.size.m, self.rows * self.cols
        inside = T.Bind(tile % per_image) if self.output.n > 1 else tile
        n = T.Bind(tile // per_image) if self.output.n > 1 else 0
        return n, T.Bind(inside // self.cols * m), T.Bind(inside % self.cols * m)

    def inputs(self, buffers: dict[str, Any], t: Any, tile: Any) -> None:
        """Stored codes of a tile -> its `v`.

        Args:
            buffers: The kernel's buffers.
            t: Index in the block of tiles.
            tile: Index among all tiles.
        """
        size, plane = self.plan.size, self.plane
        corners = plane.corners(*self.place(tile), size.size)
        lanes = plane.lanes(self.plan.transform_lanes)
        with loop(plane.channels // lanes) as chunk:
            x = [[plane.words(buffers["x"], at, chunk * lanes, lanes) for at in r] for r in corners]
            start = T.Bind(t * plane.channels + chunk * lanes)
            v = both_axes(size.input_line, x, T.Bind)
            _scatter(buffers["v"], v, start, self.plan.tiles * plane.channels, lanes)

    def sums(self, buffers: dict[str, Any], start: Any, per_point: int, vectors: int) -> None:
        """Transform the `sums` of a tile in place: those of its outputs come first."""
        size, lanes = self.plan.size, self.lanes
        with loop(vectors) as v:
            at = T.Bind(start + v * lanes)
            grid = [
                [
                    T.Bind(load(buffers["sums"], at + (i * size.size + j) * per_point, lanes))
                    for j in range(size.size)
                ]
                for i in range(size.size)
            ]
            y = both_axes(size.output_line, grid, T.Bind)
            _scatter(buffers["sums"], y, at, per_point, lanes)

    def accumulator(self, buffers: dict[str, Any], place: Any, slot: Any, v: int) -> Any:
        """A transformed sum -> an accumulator with the bias."""
        size, lanes = self.plan.size, self.lanes
        value = load(buffers["sums"], place + v * lanes, lanes)
        if size.odd > 1:
            value = value * constant(size.inverse, "uint32", lanes)
        value = T.reinterpret(f"int32x{lanes}", value)
        value = T.shift_right(value, constant(size.shift, "int32", lanes))
        return T.Bind(value + load(buffers["bias"], slot + v * lanes, lanes))


def _scatter(
    buffer: Any, grid: Sequence[Sequence[Any]], start: Any, stride: int, lanes: int
) -> None:
    """Store the vectors of a grid, one a point."""
    for point, value in enumerate(value for row in grid for value in row):
        store(buffer, start + point * stride, value, lanes)
