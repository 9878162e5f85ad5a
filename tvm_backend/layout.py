"""How values lie in memory.

A value of rank 4 `[N, C, H, W]`, rank 3 `[N, T, C]` or rank 2 `[N, C]` is an `Image`: NHWC with
a halo around every image (written by the producer with the value's zero point, so that
convolutions need no padding pass) and channels padded to a multiple of `CHANNEL_MULTIPLE`. The
contents of padding channels are undefined; kernels multiply them by zero weights or ignore them.
Everything else is `Flat`: row-major in torch's axis order.

Codes of 8 bits are stored as uint8, or as int8 where the target multiplies signed bytes; codes of
16 bits as int16 everywhere. What is stored is `code + code_offset(dtype)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fxquant.numerics.width import WIDTH_8, WIDTH_16, Width

CHANNEL_MULTIPLE = 16
INPUT_CHANNEL_MULTIPLE = 4  # of the quantized network input: 3 -> 4 instead of 16

Halo = tuple[int, int, int, int]  # top, bottom, left, right
NO_HALO: Halo = (0, 0, 0, 0)

_CODE_OFFSETS = {"uint8": 0, "int8": -(1 << 7), "int16": -(1 << 15)}


def code_offset(dtype: str) -> int:
    """What is added to a code to get the value stored as `dtype`; 0 for what holds no codes."""
    return _CODE_OFFSETS.get(dtype, 0)


def code_width(dtype: str) -> Width:
    """Width of codes stored as `dtype`."""
    return WIDTH_16 if dtype == "int16" else WIDTH_8


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Image:
    """NHWC storage.

    Attributes:
        n: Batch.
        h: Rows without halo.
        w: Columns without halo.
        c: Channels that carry values.
        channels: Stored channels, `>= c`.
        halo: Rows and columns around each image: top, bottom, left, right.
        dtype: uint8, int8 or int16 codes, int32 or int64 accumulators, or float32.
    """

    n: int
    h: int
    w: int
    c: int
    channels: int
    halo: Halo
    dtype: str

    @property
    def rows(self) -> int:
        """Stored rows."""
        return self.h + self.halo[0] + self.halo[1]

    @property
    def cols(self) -> int:
        """Stored columns."""
        return self.w + self.halo[2] + self.halo[3]

    @property
    def row_stride(self) -> int:
        """Elements from one row to the next."""
        return self.cols * self.channels

    @property
    def image_stride(self) -> int:
        """Elements from one image to the next."""
        return self.rows * self.row_stride

    @property
    def size(self) -> int:
        """Stored elements."""
        return self.n * self.image_stride

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the buffer in memory."""
        return (self.size,)

    def offset(self, n: Any, h: Any, w: Any, c: Any) -> Any:
        """Element index of logical position (n, h, w, c); h and w may reach into the halo."""
        return (
            n * self.image_stride
            + (h + self.halo[0]) * self.row_stride
            + (w + self.halo[2]) * self.channels
            + c
        )

    def __str__(self) -> str:
        halo = "" if self.halo == NO_HALO else "p" + "_".join(map(str, self.halo))
        pad = "" if self.channels == self.c else f"s{self.channels}"
        return f"{self.n}x{self.h}x{self.w}x{self.c}{pad}{halo}"


@dataclass(frozen=True, slots=True)
class Flat:
    """Row-major storage in torch's axis order."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Stored elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) or "1"


Storage = Image | Flat


def image(
    shape: tuple[int, ...], dtype: str, halo: Halo = NO_HALO, multiple: int = CHANNEL_MULTIPLE
) -> Image:
    """The Image of a torch shape of rank 2, 3 or 4."""
    match shape:
        case (n, c, h, w):
            pass
        case (n, w, c):
            h = 1
        case (n, c):
            h = w = 1
        case _:
            raise ValueError(f"a tensor of shape {shape} is no image")
    return Image(n, h, w, c, round_up(c, multiple), halo, dtype)
