"""The halo of a convolution's output, filled with a value known at run time.

The halo of an image is one run of memory before the first row, one after each row (the right
halo of a row and the left halo of the next) and one at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm_backend.layout import Image
from tvm_backend.macs.vector import loop, splat, store
from tvm_backend.tvm_api import T


def fill_halo(buffer: Any, image: Image, value: Callable[[], Any]) -> None:
    """Write the halo of `image`, if it has one.

    Args:
        buffer: Flat buffer of the image.
        image: Its storage.
        value: Makes the scalar to fill with.
    """
    top, bottom, left, right = image.halo
    first = top * image.row_stride + left * image.channels
    between = (left + right) * image.channels
    last = bottom * image.row_stride + right * image.channels
    if not first + between + last:
        return
    scalar = T.Bind(value())
    with loop(image.n) as n:
        start = n * image.image_stride
        _fill(buffer, start, first, scalar)
        if between and image.h > 1:
            with loop(image.h - 1) as h:
                _fill(buffer, image.offset(n, h, image.w, 0), between, scalar)
        _fill(buffer, start + image.image_stride - last, last, scalar)


def _fill(buffer: Any, start: Any, count: int, scalar: Any) -> None:
    if count:
        lanes = math.gcd(count, 64)
        with loop(count // lanes) as i:
            store(buffer, start + i * lanes, splat(scalar, lanes), lanes)
