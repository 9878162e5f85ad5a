"""The output stage of a convolution where 16-bit codes take part: input, result or residual.

The same three lines as `epilogue.py`, vector by vector in channel order, in int64 (in int32 for an
8-bit result of int32 accumulators). All numbers are run-time constants, so that layers of the same
shape share one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fxquant.numerics.accumulator import INT32_MAX
from fxquant.targets import MacIdiom
from tvm_backend.emit.conv_halo import fill_halo
from tvm_backend.emit.epilogue import OutputGrid, Residual, pad_channels
from tvm_backend.emit.loops import clip
from tvm_backend.emit.naming import SHORT
from tvm_backend.emit.requant import Numbers, scale_by
from tvm_backend.layout import Image, code_offset, code_width
from tvm_backend.macs.vector import constant, load, splat, store
from tvm_backend.tvm_api import T

ROUNDING, LOW, HIGH, ZERO_POINT, RESIDUAL = range(5)  # of the scalars
_LARGEST_WIDE = 1 << 48


class WideRequantize:
    """Accumulators to codes, with an optional residual.

    Args:
        idiom: Lanes and accumulators.
        image: Storage of the result.
        grid: Grid of the result.
        multiplier: m `[O]`.
        shift: s `[O]`.
        residual: Second operand.
    """

    def __init__(
        self,
        idiom: MacIdiom,
        image: Image,
        grid: OutputGrid,
        multiplier: np.ndarray,
        shift: np.ndarray,
        residual: Residual | None = None,
    ) -> None:
        self.idiom, self.image = idiom, image
        self.width = code_width(image.dtype)
        self.residual = residual.image if residual else None
        self._multiplier, self._shift = np.asarray(multiplier), np.asarray(shift, np.int64)
        offset, k = code_offset(image.dtype), self.width.fraction_bits
        zero_point = grid.zero_point + offset
        scalars = [
            (1 << (k - 1)) + (zero_point << k), grid.qmin + offset, grid.qmax + offset, zero_point,
        ]  # fmt: skip
        self.suffix = "_wide"
        if residual:
            stored_zero_point = residual.zero_point + code_offset(residual.image.dtype)
            numbers = Numbers.of(np.array([residual.multiplier]), np.array([residual.shift]))
            scalars += [stored_zero_point, *(int(n[0]) for n in numbers)]
            self.suffix += f"_add{SHORT[residual.image.dtype]}_{residual.image}"
        self._scalars = np.array(scalars, np.int32)

    def chunk_sizes(self) -> tuple[int, ...]:
        """One vector at a time."""
        return (1,)

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """Channel order."""
        return np.arange(vectors * self.idiom.lanes)

    def constants(
        self, bias: np.ndarray, chunks: Sequence[tuple[int, int]]
    ) -> list[tuple[str, np.ndarray]]:
        """Bias, the numbers of each channel, scalars."""
        smallest = 1 << (self.width.multiplier_bits - 1)
        multiplier = pad_channels(self._multiplier, len(bias), smallest)
        shift = pad_channels(self._shift, len(bias))
        return [
            ("bias", bias.astype(self.idiom.accumulator)),
            *Numbers.of(multiplier, shift)._asdict().items(),
            ("scalars", self._scalars),
        ]

    def finish(
        self, buffers: dict[str, Any], accs: list[Any], slot: Any, at: tuple[Any, Any, Any]
    ) -> None:
        """The requantization of one vector."""
        lanes, scalars = self.idiom.lanes, buffers["scalars"]
        numbers = Numbers(*(load(buffers[name], slot, lanes) for name in Numbers._fields))
        value = scale_by(accs[0], numbers, self._bound, self.width)
        if self.residual is not None:
            code = load(buffers["residual"], self.residual.offset(*at, slot), lanes)
            code = T.cast(code, f"int32x{lanes}") - splat(scalars[RESIDUAL], lanes)
            numbers = Numbers(*(splat(scalars[RESIDUAL + 1 + i], lanes) for i in range(4)))
            largest = (1 << code_width(self.residual.dtype).bits) - 1
            value = value + scale_by(code, numbers, largest, self.width)
        dtype = str(value.ty).partition("x")[0]

        def scalar(index: int) -> Any:
            return T.cast(splat(scalars[index], lanes), f"{dtype}x{lanes}")

        fraction = constant(self.width.fraction_bits, dtype, lanes)
        value = T.shift_right(value + scalar(ROUNDING), fraction)
        value = T.cast(clip(value, scalar(LOW), scalar(HIGH)), f"{self.image.dtype}x{lanes}")
        store(buffers["output"], self.image.offset(*at, slot), value, lanes)

    @property
    def _bound(self) -> int:
        """Magnitude of the accumulators: int32 ones are proved to leave room for the rounding."""
        if self.idiom.accumulator == "int64":
            return _LARGEST_WIDE
        return INT32_MAX - (1 << (self.width.max_shift - 1))

    def prologue(self, buffers: dict[str, Any]) -> None:
        """Halo of stored zero points."""
        fill_halo(
            buffers["output"], self.image,
            lambda: T.cast(buffers["scalars"][ZERO_POINT], self.image.dtype),
        )  # fmt: skip
