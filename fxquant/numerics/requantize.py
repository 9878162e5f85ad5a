"""THE requantization: int32 accumulators to 8-bit codes with integers only.

For every channel, with `k = 6` fractional bits (FRACTION_BITS):

    t = sat16((acc + 2^(s-1)) >> s)            s < 0: t = sat16(acc << -s)
    u = (t*m + 2^14) >> 15                     2^14 <= m < 2^15
    y = clip((u [+ v] + 2^(k-1) + zp*2^k) >> k, qmin, qmax)

    real multiplier = m * 2^-(15 + s + k)

`v` is the `u` of a second operand (residual add). The arithmetic is written for int16 SIMD
(`pmulhrsw`, `sqrdmulh`): every step but the first fits int16. Saturating instead of plain
additions in the last line change nothing, because `2^15 >> k` lies outside every code range.

Symbols: acc -> accumulator, m -> multiplier, s -> shift, zp -> zero_point, u -> scaled value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import NumericsError

FRACTION_BITS = 6
MIN_SHIFT, MAX_SHIFT = -14, 24
INT16_MIN, INT16_MAX = -(1 << 15), (1 << 15) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Requant:
    """Integers of the requantization, `[]` per tensor or `[C]` per channel.

    Attributes:
        multiplier: int16, in `[2^14, 2^15)`.
        shift: int8, in `[MIN_SHIFT, MAX_SHIFT]`.
    """

    multiplier: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.multiplier.dtype != torch.int16 or self.shift.dtype != torch.int8:
            raise NumericsError("Requant needs an int16 multiplier and an int8 shift")
        if bool((self.multiplier < (1 << 14)).any()):
            raise NumericsError("requantization multiplier below 2^14")
        if bool((self.shift < MIN_SHIFT).any() or (self.shift > MAX_SHIFT).any()):
            raise NumericsError(f"requantization shift outside [{MIN_SHIFT}, {MAX_SHIFT}]")

    @property
    def real(self) -> Tensor:
        """The real multiplier, float64."""
        exponent = -(15.0 + FRACTION_BITS) - self.shift.double()
        return self.multiplier.double() * torch.exp2(exponent)


SMALLEST_MULTIPLIER = 2.0 ** -(1 + FRACTION_BITS + MAX_SHIFT)
LARGEST_MULTIPLIER = 2.0 ** (-FRACTION_BITS - MIN_SHIFT)


def requant_from_real(real: Tensor, where: str = "") -> Requant:
    """Nearest integers to a real multiplier (relative error at most 2^-15).

    Args:
        real: float64, positive, `[]` or `[C]`.
        where: Name of the tensor, for the error.

    Raises:
        NumericsError: A multiplier is outside `[SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER)`.
    """
    real = real.double()
    bad = ~torch.isfinite(real) | (real < SMALLEST_MULTIPLIER) | (real >= LARGEST_MULTIPLIER)
    if bool(bad.any()):
        raise NumericsError(
            f"requantization multiplier {float(real[bad].flatten()[0]):.3g} is out of range",
            where=where,
            why=f"it must lie in [2^{math.log2(SMALLEST_MULTIPLIER):.0f}, "
            f"2^{math.log2(LARGEST_MULTIPLIER):.0f}): the scales of input, weight and output "
            "differ too much",
            remedy="leave the layer in float, or check its calibration range",
        )
    mantissa, exponent = torch.frexp(real)  # mantissa in [0.5, 1)
    multiplier = torch.round(mantissa * (1 << 15))
    carry = multiplier == (1 << 15)
    multiplier = torch.where(carry, torch.full_like(multiplier, 1 << 14), multiplier)
    shift = -(exponent + carry.to(exponent.dtype)) - FRACTION_BITS
    overflow = shift < MIN_SHIFT  # only the carry at the very top of the domain
    multiplier = torch.where(overflow, torch.full_like(multiplier, (1 << 15) - 1), multiplier)
    shift = shift.clamp(min=MIN_SHIFT)
    return Requant(multiplier.to(torch.int16), shift.to(torch.int8))


def largest_ratio(span: int) -> float:
    """Largest operand scale / output scale at which `t` of an operand cannot saturate.

    For a ratio in `[2^e, 2^(e+1))` the shift is `-(7 + e)`, and `span << (7 + e)` must fit int16.

    Args:
        span: Largest magnitude of `code - zero_point`.
    """
    exponent = (INT16_MAX // max(span, 1)).bit_length() - 1 - 7
    return 2.0 ** (exponent + 1) * (1 - 2.0**-14)


# Output steps that `u` of an accumulator can hold whatever its multiplier: 2^14 / 2^k.
ACCUMULATOR_STEPS = (INT16_MAX >> 1) / (1 << FRACTION_BITS)


def scale_accumulator(acc: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """`u` of the module docstring: the accumulator in units of 2^-k output steps.

    Args:
        acc: int64 accumulators, bias included.
        multiplier: m, broadcastable to `acc`.
        shift: s, broadcastable to `acc`.

    Returns:
        int64 tensor with values inside int16.
    """
    shift = torch.as_tensor(shift, dtype=torch.int64, device=acc.device)
    multiplier = torch.as_tensor(multiplier, dtype=torch.int64, device=acc.device)
    right, left = shift.clamp(min=0), (-shift).clamp(min=0)
    half = torch.where(shift > 0, torch.ones_like(shift) << (right - 1).clamp(min=0), 0)
    t = (((acc << left) + half) >> right).clamp(INT16_MIN, INT16_MAX)
    return (t * multiplier + (1 << 14)) >> 15


def to_codes(scaled: Tensor, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """Round the (sum of) scaled values to uint8 codes: the last line of the definition."""
    scaled = scaled.clamp(INT16_MIN, INT16_MAX)
    half = 1 << (FRACTION_BITS - 1)
    codes = (scaled + half + (zero_point << FRACTION_BITS)) >> FRACTION_BITS
    return codes.clamp(qmin, qmax).to(torch.uint8)
