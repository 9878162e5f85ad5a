"""Codes of 2..8 bits as a dense bit stream, little end first."""

from __future__ import annotations

import numpy as np


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes (any shape) to a uint8 stream of `packed_size(codes.size, bits)` bytes."""
    unsigned = codes.reshape(-1).astype(np.int8).view(np.uint8)
    planes = (unsigned[:, None] >> np.arange(bits, dtype=np.uint8)) & 1  # [count, bits]
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_codes(stream: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `pack_codes`: int8 codes of the given shape."""
    count = int(np.prod(shape))
    planes = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = np.zeros(count, np.uint8)
    for bit in range(bits):
        unsigned |= planes[:, bit] << np.uint8(bit)
    sign = np.uint8(1 << (bits - 1))
    return ((unsigned ^ sign) - sign).view(np.int8).reshape(shape)
