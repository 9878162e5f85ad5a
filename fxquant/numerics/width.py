"""Width: the constants of the integer arithmetic for 8-bit and for 16-bit codes.

Codes of 2..8 bits travel as uint8, codes of 16 bits as uint16. Both are requantized by the same
three lines (`requantize.py`), on words of twice the width of the code: int16 and int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Width:
    """What depends on the width of codes.

    Attributes:
        bits: Bits of the type that carries the codes.
        fraction_bits: k, fractional bits of scaled values. One more would saturate one-sided
            ranges before the clip.
        min_shift: Smallest s.
        max_shift: Largest s.
        codes: Type of the codes.
        multiplier: Type of m.
        accumulator: Type of the accumulators of operators that read such codes.
        largest_accumulator: Magnitude these may reach. Wide ones stay exact in float64, and in
            int64 when they are shifted left.
    """

    bits: int
    fraction_bits: int
    min_shift: int
    max_shift: int
    codes: torch.dtype
    multiplier: torch.dtype
    accumulator: torch.dtype
    largest_accumulator: int

    @property
    def word_max(self) -> int:
        """Largest word; words hold t and u."""
        return (1 << (2 * self.bits - 1)) - 1

    @property
    def word_min(self) -> int:
        """Smallest word."""
        return -1 - self.word_max

    @property
    def multiplier_bits(self) -> int:
        """m lies in `[2^(multiplier_bits - 1), 2^multiplier_bits)`."""
        return 2 * self.bits - 1

    @property
    def smallest_multiplier(self) -> float:
        """Smallest real multiplier."""
        return 2.0 ** -(1 + self.fraction_bits + self.max_shift)

    @property
    def largest_multiplier(self) -> float:
        """Real multipliers are smaller than this."""
        return 2.0 ** (-self.fraction_bits - self.min_shift)

    @property
    def accumulator_steps(self) -> float:
        """Output steps that u of an accumulator can hold whatever its multiplier."""
        return (self.word_max >> 1) / (1 << self.fraction_bits)

    @property
    def largest_bias(self) -> float:
        """Magnitude of a bias that leaves the accumulated products room."""
        return float((self.largest_accumulator + 1) >> 3)

    def largest_ratio(self, span: int) -> float:
        """Largest operand scale / output scale at which t of an operand does not saturate.

        For a ratio in `[2^e, 2^(e+1))` the shift is `-(k + 1 + e)`. After a right shift the
        last unit, 2^-k output steps, may be lost: a one-sided 16-bit operand of an 8-bit sum fits.

        Args:
            span: Largest magnitude of `code - zero_point`.
        """
        span = max(span, 1)
        left = (self.word_max // span).bit_length() - 1
        while left < 0 and (span + (1 << (-left - 1))) >> -left > self.word_max + 1:
            left -= 1
        return 2.0 ** (left - self.fraction_bits) * (1 - 2.0 ** (1 - self.multiplier_bits))


WIDTH_8 = Width(8, 6, -14, 24, torch.uint8, torch.int16, torch.int32, (1 << 31) - 1)
WIDTH_16 = Width(16, 14, -30, 24, torch.uint16, torch.int32, torch.int64, (1 << 48) - 1)


def width_of(bits: int) -> Width:
    """The width that carries codes of so many bits."""
    return WIDTH_8 if bits <= 8 else WIDTH_16


def width_of_dtype(dtype: torch.dtype) -> Width:
    """The width of codes of a type."""
    return WIDTH_16 if dtype == WIDTH_16.codes else WIDTH_8
