"""How a kernel reads weight codes: a byte each, or several codes of few bits in each byte.

Packed, `8 / bits` successive vectors of a reduction step share one vector in memory: bits
`bits * f` and up of byte i belong to element i of vector f. One load, then shifts and masks of
whole vectors, give the vectors in the order that byte codes have; nothing is shuffled. Codes are
stored unsigned, `code + 2^(bits - 1)`.

Worth it where memory is the limit: one output pixel reads each weight once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fxquant.errors import UnsupportedError
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.macs import Mac
from tvm_backend.macs.vector import constant, load, prefetch
from tvm_backend.tvm_api import T

PACKED_BITS = (2, 4)
AHEAD = 2048  # bytes from a packed weight to the one prefetched with it; measured on AVX2
LINE = 64  # bytes of a cache line


@dataclass(frozen=True, slots=True)
class WeightForm:
    """Weight codes in memory.

    Attributes:
        bits: Bits a code takes: 8, or one of `PACKED_BITS`.
    """

    bits: int = 8

    @property
    def density(self) -> int:
        """Vectors of codes in one vector of memory."""
        return 8 // self.bits

    def stored(self, vectors: int) -> int:
        """Vectors of memory that hold the vectors of one step of a block."""
        return -(-vectors // self.density)

    def shared(self, v: int, vectors: int) -> range:
        """The vectors of a block that share memory with vector `v`."""
        first = v // self.density * self.density
        return range(first, min(first + self.density, vectors))

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """int8 `[..., vectors, elements]` -> `[..., stored vectors, elements]`, uint8 if packed.

        Raises:
            UnsupportedError: A code has more bits.
        """
        if self.density == 1:
            return codes
        if code_bits(codes) > self.bits:
            raise UnsupportedError(
                f"weight codes of {code_bits(codes)} bits cannot be packed at {self.bits}",
                remedy="pack them at more bits, or keep them as bytes",
            )
        missing = -codes.shape[-2] % self.density
        padding = [(0, 0)] * (codes.ndim - 2) + [(0, missing), (0, 0)]
        half = 1 << (self.bits - 1)
        fields = np.pad(codes, padding, constant_values=-half).astype(np.uint8) + np.uint8(half)
        fields = fields.reshape(*codes.shape[:-2], -1, self.density, codes.shape[-1])
        shifts = np.arange(self.density, dtype=np.uint8)[:, None] * np.uint8(self.bits)
        return np.bitwise_or.reduce(fields << shifts, axis=-2)

    def prefetch(self, buffer: Any, offset: Any, nbytes: int) -> None:
        """Ask for packed weights that are needed soon after those at `offset`."""
        if self.density > 1:
            for line in range(0, nbytes, LINE):
                prefetch(buffer, offset + AHEAD + line)

    def load(self, mac: Mac, buffer: Any, offset: Any, count: int) -> list[Any]:
        """`count` successive weight vectors as operands of `mac`.

        Args:
            mac: The MAC implementation; packed, its operands are the codes as bytes.
            buffer: Weights.
            offset: First element in memory.
            count: At most `density` if packed.
        """
        lanes = mac.idiom.lanes * mac.idiom.reduction
        if self.density == 1:
            return [T.Bind(mac.load_weights(buffer, offset + v * lanes)) for v in range(count)]
        packed = T.Bind(load(buffer, offset, lanes))
        mask = constant((1 << self.bits) - 1, "uint8", lanes)
        half = constant(1 << (self.bits - 1), "uint8", lanes)
        vectors = []
        for field in range(count):
            shift = constant(self.bits * field, "uint8", lanes)
            value = ((packed >> shift if field else packed) & mask) - half
            vectors.append(T.Bind(T.reinterpret(f"int8x{lanes}", value)))
        return vectors


BYTES = WeightForm()


def possible_forms(problem: ConvProblem, weight: np.ndarray) -> list[WeightForm]:
    """Bytes; and where every weight is read once, the packed forms that hold every code."""
    output = problem.output
    bits = code_bits(weight) if output.n * output.h * output.w == 1 else 8
    return [BYTES, *(WeightForm(packed) for packed in PACKED_BITS if packed >= bits)]


def code_bits(codes: np.ndarray) -> int:
    """Bits of the narrowest signed integer that holds every code, at least 2."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    return max(2, max(high, -low - 1).bit_length() + 1)
