"""Value types of quantization: integer ranges, intent (QuantSpec), result (QParams, QTensor)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import ConfigError, NumericsError

SMALLEST_SCALE = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, slots=True)
class IntType:
    """A range of integers (not a storage type).

    Attributes:
        bits: Width, 2..8 or 16.
        signed: Two's complement if true, else 0..2^bits-1.
        narrow: Drop the most negative code, so that the range is symmetric.
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 5, 6, 7, 8, 16):
            raise ConfigError(
                f"{self.bits} bits is not a supported width", remedy="use 2..8 or 16 bits"
            )
        if self.narrow and not self.signed:
            raise ConfigError("an unsigned range cannot be narrow", remedy="narrow needs signed")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return (-(1 << (self.bits - 1)) + self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - self.signed)) - 1

    def __str__(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.bits}{'n' if self.narrow else ''}"


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale for each index of `axis`."""

    axis: int


Granularity = PerTensor | PerAxis


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """What is wanted of a tensor's quantization; holds no tensors and is hashable."""

    dtype: IntType
    granularity: Granularity = PerTensor()
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.symmetric and not self.dtype.signed:
            raise ConfigError("a symmetric grid needs a signed type", remedy="use signed codes")


def activation_spec(bits: int) -> QuantSpec:
    """Affine per-tensor grid of unsigned codes, the canonical view of every activation."""
    return QuantSpec(IntType(bits, signed=False))


def weight_spec(bits: int, axis: int = 0) -> QuantSpec:
    """Symmetric per-output-channel grid of narrow signed codes."""
    return QuantSpec(IntType(bits, signed=True, narrow=True), PerAxis(axis), symmetric=True)


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """The grid of a quantized tensor: `real = scale * (code - zero_point)`.

    Attributes:
        spec: The intent this grid fulfils.
        scale: float32, `[]` per tensor or `[C]` per axis; finite and normal.
        zero_point: int32, same shape, inside `[qmin, qmax]`; 0 if symmetric.
    """

    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor

    def __post_init__(self) -> None:
        scale, zero_point, dtype = self.scale, self.zero_point, self.spec.dtype
        if scale.dtype != torch.float32 or zero_point.dtype != torch.int32:
            raise NumericsError(
                f"scale/zero_point are {scale.dtype}/{zero_point.dtype}",
                why="they must be float32 and int32",
            )
        if scale.shape != zero_point.shape:
            raise NumericsError(
                f"scale {tuple(scale.shape)} and zero_point "
                f"{tuple(zero_point.shape)} differ in shape"
            )
        if scale.ndim != (0 if isinstance(self.spec.granularity, PerTensor) else 1):
            raise NumericsError(f"scale of rank {scale.ndim} for {self.spec.granularity}")
        if not bool(torch.isfinite(scale).all()) or bool((scale < SMALLEST_SCALE).any()):
            raise NumericsError(
                f"scale has a value that is zero, subnormal, negative or not finite: "
                f"{scale.flatten()[:4].tolist()}",
                why="codes on such a grid carry no value",
                remedy="check the tensor for NaN/Inf or an empty range",
            )
        if bool((zero_point < dtype.qmin).any()) or bool((zero_point > dtype.qmax).any()):
            raise NumericsError(
                f"zero_point {zero_point.tolist()} outside [{dtype.qmin}, {dtype.qmax}]"
            )
        if self.spec.symmetric and bool((zero_point != 0).any()):
            raise NumericsError("a symmetric grid has zero_point 0")

    @property
    def axis(self) -> int | None:
        """Channel axis, or None per tensor."""
        g = self.spec.granularity
        return g.axis if isinstance(g, PerAxis) else None

    def broadcast(self, ndim: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point shaped to broadcast over a tensor of rank `ndim`."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def to(self, device: torch.device) -> QParams:
        """The same grid on a device."""
        if self.scale.device == device and self.zero_point.device == device:
            return self
        return QParams(self.spec, self.scale.to(device), self.zero_point.to(device))

    def __str__(self) -> str:
        if self.axis is None:
            return f"{self.spec.dtype} scale={float(self.scale):.6g} zp={int(self.zero_point)}"
        lo, hi = float(self.scale.min()), float(self.scale.max())
        return f"{self.spec.dtype} per-axis-{self.axis} scale={lo:.4g}..{hi:.4g}"


@dataclass(frozen=True, slots=True, eq=False)
class QTensor:
    """Integer codes and their grid."""

    codes: Tensor
    qparams: QParams

    def dequantize(self) -> Tensor:
        """The real values, float32."""
        scale, zero_point = self.qparams.broadcast(self.codes.ndim)
        return (self.codes.to(torch.int32) - zero_point).to(torch.float32) * scale

    def to(self, device: torch.device) -> QTensor:
        """The same on a device."""
        if self.codes.device == device and self.qparams.to(device) is self.qparams:
            return self
        return QTensor(self.codes.to(device), self.qparams.to(device))


def qparams_from_range(low: Tensor, high: Tensor, spec: QuantSpec) -> QParams:
    """The grid that covers `[low, high]` and represents 0 exactly.

    Args:
        low: Smallest real values, `[]` or `[C]`.
        high: Largest real values, same shape.
        spec: The wanted grid.

    Returns:
        Grid with float32 scale; a zero range gets scale 1/qmax, so that 0 and 1 are codes.

    Raises:
        NumericsError: A bound is not finite.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise NumericsError(
            "a range bound is NaN or infinite", remedy="check the calibration data and the weights"
        )
    dtype = spec.dtype
    if spec.symmetric:
        scale = torch.maximum(-low / -dtype.qmin, high / dtype.qmax)
    else:
        scale = (high - low) / (dtype.qmax - dtype.qmin)
    smallest = SMALLEST_SCALE * 2
    scale = torch.where(scale < smallest, torch.full_like(scale, 1.0 / dtype.qmax), scale).float()
    if spec.symmetric:
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
    else:
        zero_point = torch.round(dtype.qmin - low / scale.double())
        zero_point = zero_point.clamp(dtype.qmin, dtype.qmax).to(torch.int32)
    return QParams(spec, scale, zero_point)
