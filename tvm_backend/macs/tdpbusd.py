"""Intel AMX: `tdpbusd` adds the product of a u8 and a s8 tile to an int32 tile.

A tile is up to 16 rows of up to 64 bytes; rows lie anywhere in memory at equal distances. How many
rows and bytes each of the 8 tiles has is set once, before they are used (`configuration`).

The instruction takes as many cycles as A has rows, so that tiles of 7 or 14 pixels waste nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fxquant.targets.idioms import TDPBUSD
from tvm_backend.tvm_api import T

UNIT = TDPBUSD
ROW_BYTES = 64  # of sums and of weights
SUMS, ACTIVATIONS, WEIGHTS = range(4), range(4, 6), range(6, 8)  # what a kernel uses each tile for
_PALETTE, _BYTES_AT, _ROWS_AT = 1, 16, 48  # where the configuration has what


def configuration(rows: int, depth: int) -> np.ndarray:
    """What `ldtilecfg` reads, uint8 `[64]`.

    Args:
        rows: Pixels of a tile of sums or activations, up to 16.
        depth: Codes of a row of activations, a multiple of 4 up to 64.
    """
    shapes = {
        **dict.fromkeys(SUMS, (rows, ROW_BYTES)),
        **dict.fromkeys(ACTIVATIONS, (rows, depth)),
        **dict.fromkeys(WEIGHTS, (depth // UNIT.reduction, ROW_BYTES)),
    }
    result = np.zeros(64, np.uint8)
    result[0] = _PALETTE
    for tile, (count, nbytes) in shapes.items():
        result[_BYTES_AT + 2 * tile] = nbytes
        result[_ROWS_AT + tile] = count
    return result


@contextmanager
def configured(buffer: Any) -> Iterator[None]:
    """Code that uses tiles, shaped as the configuration in `buffer` says."""
    _run("ldtilecfg", T.address_of(buffer[0]))
    yield
    _run("tilerelease")


def load(tile: int, buffer: Any, offset: Any, stride: int) -> None:
    """Rows from `offset` on, `stride` bytes apart; 0 repeats the first one."""
    _run("tileloadd64", T.int8(tile), T.address_of(buffer[offset]), T.int64(stride))


def store(tile: int, buffer: Any, offset: Any, stride: int) -> None:
    """The opposite."""
    _run("tilestored64", T.int8(tile), T.address_of(buffer[offset]), T.int64(stride))


def multiply_accumulate(sums: int, activations: int, weights: int) -> None:
    """`sums += activations @ weights`, modulo 2^32."""
    _run("tdpbusd", T.int8(sums), T.int8(activations), T.int8(weights))


def _run(name: str, *arguments: Any) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))
