"""THE requantization: accumulators to 8-bit or 16-bit codes with integers only.

For every channel, with words of `2b` bits for codes carried by `b` bits (int16 for 8-bit codes,
int32 for 16-bit codes) and `k = b - 2` fractional bits (`Width`):

    t = sat((acc + 2^(s-1)) >> s)                s < 0: t = sat(acc << -s)
    u = (t*m + 2^(2b-2)) >> (2b-1)               2^(2b-2) <= m < 2^(2b-1)
    y = clip((u [+ v] + 2^(k-1) + zp*2^k) >> k, qmin, qmax)

    real multiplier = m * 2^-(2b - 1 + s + k)

`v` is the `u` of a second operand (residual add). The arithmetic is written for int16 SIMD
(`pmulhrsw`, `sqrdmulh`): at 8 bits every step but the first fits int16. Saturating instead of
plain additions in the last line change nothing, because the largest word `>> k` lies outside every
code range.

Symbols: acc -> accumulator, m -> multiplier, s -> shift, zp -> zero_point, u -> scaled value,
sat -> saturation to a word, k -> fraction_bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import NumericsError
from fxquant.numerics.width import WIDTH_8, Width


@dataclass(frozen=True, slots=True, eq=False)
class Requant:
    """Integers of the requantization, `[]` per tensor or `[C]` per channel.

    Attributes:
        multiplier: int16, in `[2^14, 2^15)`; for 16-bit results int32, in `[2^30, 2^31)`.
        shift: int8, in `[width.min_shift, width.max_shift]`.
        width: Width of the result.
    """

    multiplier: Tensor
    shift: Tensor
    width: Width = WIDTH_8

    def __post_init__(self) -> None:
        width = self.width
        if self.multiplier.dtype != width.multiplier or self.shift.dtype != torch.int8:
            raise NumericsError(f"Requant needs an {width.multiplier} multiplier and an int8 shift")
        if bool((self.multiplier < (1 << (width.multiplier_bits - 1))).any()):
            raise NumericsError(f"requantization multiplier below 2^{width.multiplier_bits - 1}")
        if bool((self.shift < width.min_shift).any() or (self.shift > width.max_shift).any()):
            raise NumericsError(
                f"requantization shift outside [{width.min_shift}, {width.max_shift}]"
            )

    @property
    def real(self) -> Tensor:
        """The real multiplier, float64."""
        fixed = float(self.width.multiplier_bits + self.width.fraction_bits)
        return self.multiplier.double() * torch.exp2(-fixed - self.shift.double())


def requant_from_real(real: Tensor, where: str = "", width: Width = WIDTH_8) -> Requant:
    """Nearest integers to a real multiplier (relative error at most 2^-15, or 2^-31).

    Args:
        real: float64, positive, `[]` or `[C]`.
        where: Name of the tensor, for the error.
        width: Width of the result.

    Raises:
        NumericsError: A multiplier is outside `[smallest_multiplier, largest_multiplier)`.
    """
    real = real.double()
    smallest, largest = width.smallest_multiplier, width.largest_multiplier
    bad = ~torch.isfinite(real) | (real < smallest) | (real >= largest)
    if bool(bad.any()):
        raise NumericsError(
            f"requantization multiplier {float(real[bad].flatten()[0]):.3g} is out of range",
            where=where,
            why=f"it must lie in [2^{math.log2(smallest):.0f}, 2^{math.log2(largest):.0f}): "
            "the scales of input, weight and output differ too much",
            remedy="leave the layer in float, or check its calibration range",
        )
    top = 1 << width.multiplier_bits
    mantissa, exponent = torch.frexp(real)  # mantissa in [0.5, 1)
    multiplier = torch.round(mantissa * top)
    carry = multiplier == top
    multiplier = torch.where(carry, torch.full_like(multiplier, top >> 1), multiplier)
    shift = -(exponent + carry.to(exponent.dtype)) - width.fraction_bits
    overflow = shift < width.min_shift  # only the carry at the very top of the domain
    multiplier = torch.where(overflow, torch.full_like(multiplier, top - 1), multiplier)
    shift = shift.clamp(min=width.min_shift)
    return Requant(multiplier.to(width.multiplier), shift.to(torch.int8), width)


def scale_accumulator(
    acc: Tensor, multiplier: Tensor | int, shift: Tensor | int, width: Width = WIDTH_8
) -> Tensor:
    """`u` of the module docstring: the accumulator in units of 2^-k output steps.

    Args:
        acc: int64 accumulators, bias included; for 8-bit results also int32, as long as adding
            2^(s-1) to them stays in it.
        multiplier: m, broadcastable to `acc`.
        shift: s, broadcastable to `acc`.
        width: Width of the result.

    Returns:
        Values inside a word, of the type of `acc`; int64 for 16-bit results.
    """
    acc = acc if width is WIDTH_8 else acc.to(torch.int64)  # products of words have 62 bits
    shift = torch.as_tensor(shift, dtype=acc.dtype, device=acc.device)
    multiplier = torch.as_tensor(multiplier, dtype=acc.dtype, device=acc.device)
    right, left = shift.clamp(min=0), (-shift).clamp(min=0)
    half = (torch.ones_like(right) << right) >> 1
    if left.is_meta or left.any():  # what saturates anyway would leave the type when shifted
        acc = torch.where(left > 0, acc.clamp(width.word_min, width.word_max), acc) << left
    t = (acc + half).bitwise_right_shift_(right).clamp_(width.word_min, width.word_max)
    rounded = t.mul_(multiplier).add_(1 << (width.multiplier_bits - 1))
    return rounded.bitwise_right_shift_(width.multiplier_bits)


def to_codes(
    scaled: Tensor, zero_point: int, qmin: int, qmax: int, width: Width = WIDTH_8
) -> Tensor:
    """Round the (sum of) scaled values to codes: the last line of the definition."""
    k = width.fraction_bits
    codes = scaled.clamp(width.word_min, width.word_max)
    codes.add_((1 << (k - 1)) + (zero_point << k)).bitwise_right_shift_(k)
    return codes.clamp_(qmin, qmax).to(width.codes)
