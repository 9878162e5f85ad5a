"""Codes of 2..8 bits as a dense bit stream, little end first."""

from __future__ import annotations

import numpy as np


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes (any shape) to a uint8 stream of `packed_size(codes.size, bits)` bytes."""
    unsigned = codes.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    planes = (unsigned[:, None] >> np.arange(bits)) & 1  # [count, bits]
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_codes(stream: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `pack_codes`: int8 codes of the given shape."""
    count = int(np.prod(shape))
    planes = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = planes.astype(np.int64) @ (1 << np.arange(bits))
    signed = np.where(unsigned >> (bits - 1), unsigned - (1 << bits), unsigned)
    return signed.astype(np.int8).reshape(shape)
