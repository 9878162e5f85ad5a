"""The output stage of a convolution: int32 accumulators to codes, or to memory as they are.

Written on int16 vectors as the requantization defines it (`fxquant/numerics/requantize.py`):
the rounding half of the first shift is folded into the bias; the zero point, the half of the
last shift and the storage offset are one int16 constant, added with saturation.

What changes the instructions (left shifts, a clip tighter than the storage type, the shift of a
residual) is the FORM and part of the kernel's name; all other numbers are run-time constants,
so that layers of the same shape share one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.numerics.width import WIDTH_8
from fxquant.targets import MacIdiom
from tvm_backend.emit.conv_halo import fill_halo
from tvm_backend.emit.epilogue_isa import EpilogueIsa
from tvm_backend.emit.word_requant import saturating_add, scale_difference
from tvm_backend.layout import NO_HALO, Image, code_offset
from tvm_backend.macs.vector import constant, load, splat, store
from tvm_backend.tvm_api import T

FRACTION_BITS = WIDTH_8.fraction_bits
ROUNDING, LOW, HIGH, ZERO_POINT, RESIDUAL_ZERO_POINT, RESIDUAL_MULTIPLIER = range(6)
SCALARS = 8


@dataclass(frozen=True, slots=True)
class Residual:
    """A second operand, added before the last rounding.

    Attributes:
        image: Its storage; same logical shape as the output.
        zero_point: Its zero point, of codes.
        multiplier: m of its requantization.
        shift: s of its requantization.
    """

    image: Image
    zero_point: int
    multiplier: int
    shift: int


@dataclass(frozen=True, slots=True)
class OutputGrid:
    """Grid of the codes written."""

    zero_point: int
    qmin: int
    qmax: int


class OutputStage(Protocol):
    """What happens to finished accumulators.

    Attributes:
        image: Storage of the result.
        residual: Storage of the residual input, or None.
        suffix: What the kernel name must say about the stage.
    """

    image: Image
    residual: Image | None
    suffix: str

    def chunk_sizes(self) -> tuple[int, ...]:
        """Vectors that can be finished together, largest first."""
        ...

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """Channel, relative to its chunk, of each accumulator lane of a chunk."""
        ...

    def constants(
        self, bias: np.ndarray, chunks: Sequence[tuple[int, int]]
    ) -> list[tuple[str, np.ndarray]]:
        """Named constant arrays; the first is the bias in accumulator order.

        Args:
            bias: int64 `[slots]` in channel order.
            chunks: `(first vector, vectors)` of each chunk.
        """
        ...

    def finish(
        self, buffers: dict[str, Any], accs: list[Any], slot: Any, at: tuple[Any, Any, Any]
    ) -> None:
        """Turn the accumulators of one chunk into outputs.

        Args:
            buffers: Kernel parameters by name.
            accs: One int32 vector each.
            slot: First channel of the chunk.
            at: Output position n, h, w.
        """
        ...

    def prologue(self, buffers: dict[str, Any]) -> None:
        """Write the halo."""
        ...


def pad_channels(values: np.ndarray, slots: int, fill: int = 0) -> np.ndarray:
    """`[O]` -> int64 `[slots]`."""
    padded = np.full(slots, fill, np.int64)
    padded[: len(values)] = np.asarray(values, np.int64)
    return padded


def in_order(
    values: np.ndarray, chunks: Sequence[tuple[int, int]], lanes: int, order: Any
) -> np.ndarray:
    """Channel-ordered values rearranged chunk by chunk with `order(vectors)`."""
    parts = [values[first * lanes + order(vectors)] for first, vectors in chunks]
    return np.concatenate(parts)


class Requantize:
    """Accumulators to 8-bit codes, with an optional residual.

    Args:
        isa: The int16 instructions.
        image: Storage of the result.
        grid: Grid of the result.
        multiplier: m `[O]`.
        shift: s `[O]`.
        residual: Second operand.
        natural: Forbid permuted channels.
    """

    def __init__(
        self,
        isa: EpilogueIsa,
        image: Image,
        grid: OutputGrid,
        multiplier: np.ndarray,
        shift: np.ndarray,
        residual: Residual | None = None,
        natural: bool = False,
    ) -> None:
        self.isa, self.image, self.natural = isa, image, natural
        self.residual = residual.image if residual else None
        self._multiplier, self._shift = np.asarray(multiplier), np.asarray(shift, np.int64)
        self._left = bool((self._shift < 0).any())
        self._clip = (grid.qmin, grid.qmax) != (0, 255)
        self._residual_shift = residual.shift if residual else 0
        self._shift_count = len(isa.shift_constants(self._shift, self._left))
        offset = code_offset(image.dtype)
        scalars = np.zeros(SCALARS, np.int16)
        zero_point = grid.zero_point + offset
        scalars[ROUNDING] = (1 << (FRACTION_BITS - 1)) + (zero_point << FRACTION_BITS)
        scalars[LOW], scalars[HIGH] = grid.qmin + offset, grid.qmax + offset
        scalars[ZERO_POINT] = zero_point
        if residual:
            scalars[RESIDUAL_ZERO_POINT] = residual.zero_point + offset
            scalars[RESIDUAL_MULTIPLIER] = residual.multiplier
        self._scalars = scalars
        self.suffix = ("_left" if self._left else "") + ("_clip" if self._clip else "")
        if residual:
            direction = "r" if residual.shift >= 0 else "l"
            self.suffix += f"_add{residual.image}{direction}{abs(residual.shift)}"

    def chunk_sizes(self) -> tuple[int, ...]:
        """Those of the ISA."""
        return self.isa.chunk_sizes(self.natural)

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """That of the ISA."""
        return self.isa.accumulator_order(vectors)

    def constants(
        self, bias: np.ndarray, chunks: Sequence[tuple[int, int]]
    ) -> list[tuple[str, np.ndarray]]:
        """Bias with the rounding half folded in, multipliers, shifts, scalars."""
        isa, lanes = self.isa, self.isa.lanes
        multiplier = pad_channels(self._multiplier, len(bias), 1 << 14)
        shift = pad_channels(self._shift, len(bias))
        bias = bias + np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
        accumulators = in_order(bias, chunks, lanes, isa.accumulator_order)
        packed = in_order(multiplier, chunks, lanes, isa.packed_order)
        shift = in_order(shift, chunks, lanes, isa.accumulator_order)
        shifts = isa.shift_constants(shift, self._left)
        return [
            ("bias", accumulators.astype(np.int32)),
            ("multiplier", packed.astype(np.int16)),
            *((f"shift{i}", amount.astype(np.int32)) for i, amount in enumerate(shifts)),
            ("scalars", self._scalars),
        ]

    def finish(
        self, buffers: dict[str, Any], accs: list[Any], slot: Any, at: tuple[Any, Any, Any]
    ) -> None:
        """The requantization of one chunk."""
        isa, vectors = self.isa, len(accs)
        lanes, codes = isa.int16_lanes(vectors), vectors * isa.lanes
        shifts = [buffers[f"shift{i}"] for i in range(self._shift_count)]
        shifted = [
            isa.shift(acc, shifts, slot + i * isa.lanes, self._left) for i, acc in enumerate(accs)
        ]
        values = isa.pack(shifted)
        for i, t in enumerate(values):
            multiplier = load(buffers["multiplier"], slot + i * lanes, lanes)
            values[i] = isa.multiply_high(t, multiplier, lanes)
        if self.residual is not None:
            raw = load(buffers["residual"], self.residual.offset(*at, slot), codes)
            seconds = isa.unpack(T.Bind(raw), vectors)
            scaled = [self._scale_residual(buffers, second, lanes) for second in seconds]
            values = [saturating_add(u, v, lanes) for u, v in zip(values, scaled, strict=True)]
        rounding = splat(buffers["scalars"][ROUNDING], lanes)
        last = constant(FRACTION_BITS, "int16", lanes)
        values = [T.shift_right(saturating_add(u, rounding, lanes), last) for u in values]
        result = isa.narrow(values, self.image.dtype, vectors)
        if self._clip:
            result = T.max(result, splat(self._scalar(buffers, LOW), codes))
            result = T.min(result, splat(self._scalar(buffers, HIGH), codes))
        store(buffers["output"], self.image.offset(*at, slot), result, codes)

    def _scale_residual(self, buffers: dict[str, Any], codes: Any, lanes: int) -> Any:
        """`v` of the second operand."""
        value = codes - splat(buffers["scalars"][RESIDUAL_ZERO_POINT], lanes)
        multiplier = splat(buffers["scalars"][RESIDUAL_MULTIPLIER], lanes)
        return scale_difference(self.isa, value, multiplier, self._residual_shift, lanes)

    def _scalar(self, buffers: dict[str, Any], index: int) -> Any:
        return T.cast(buffers["scalars"][index], self.image.dtype)

    def prologue(self, buffers: dict[str, Any]) -> None:
        """Halo of stored zero points."""
        fill_halo(buffers["output"], self.image, lambda: self._scalar(buffers, ZERO_POINT))


class Accumulate:
    """Accumulators stored as they are, for float outputs.

    Args:
        image: Storage of the result: int32, or int64 of 16-bit codes.
        idiom: Lanes and type of an accumulator vector.
    """

    residual: Image | None = None
    suffix = ""

    def __init__(self, image: Image, idiom: MacIdiom) -> None:
        if image.halo != NO_HALO:
            raise UnsupportedError(
                f"accumulators cannot be stored with a halo, as in {image}",
                why="they have no zero point; only float operators read them",
                remedy="this is an error of the layout planning; report it",
            )
        self.image, self.idiom, self.lanes = image, idiom, idiom.lanes

    def chunk_sizes(self) -> tuple[int, ...]:
        """One vector a store."""
        return (1,)

    def accumulator_order(self, vectors: int) -> np.ndarray:
        """Channel order."""
        return np.arange(vectors * self.lanes)

    def constants(
        self, bias: np.ndarray, chunks: Sequence[tuple[int, int]]
    ) -> list[tuple[str, np.ndarray]]:
        """The bias alone."""
        return [("bias", bias.astype(self.idiom.accumulator))]

    def finish(
        self, buffers: dict[str, Any], accs: list[Any], slot: Any, at: tuple[Any, Any, Any]
    ) -> None:
        """Store."""
        value = T.cast(accs[0], f"{self.image.dtype}x{self.lanes}")
        store(buffers["output"], self.image.offset(*at, slot), value, self.lanes)

    def prologue(self, buffers: dict[str, Any]) -> None:
        """Nothing: there is no halo."""
