"""Halos of values whose kernel does not write row by row."""

from __future__ import annotations

from typing import Any

from tvm_backend.call import Value
from tvm_backend.emit.loops import fill
from tvm_backend.layout import Image
from tvm_backend.tvm_api import T


def fill_halo(output: Value, buffer: Any) -> None:
    """Write the whole halo of `output`; nothing if it has none."""
    image = output.storage
    if not isinstance(image, Image) or not any(image.halo) or output.fill is None:
        return
    top, bottom, left, right = image.halo
    value = output.fill
    with T.serial(image.n) as n:
        fill(buffer, image.offset(n, -top, -left, 0), top * image.row_stride, value)
        fill(buffer, image.offset(n, image.h, -left, 0), bottom * image.row_stride, value)
        if left or right:
            with T.serial(image.h) as h:
                fill(buffer, image.offset(n, h, -left, 0), left * image.channels, value)
                fill(buffer, image.offset(n, h, image.w, 0), right * image.channels, value)
