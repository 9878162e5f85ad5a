"""ConvProblem: everything about a convolution but its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from fxquant.errors import UnsupportedError
from tvm_backend.emit.epilogue import OutputGrid, Residual
from tvm_backend.layout import Image, code_offset


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """A convolution between two images; zero points and bounds are codes.

    Attributes:
        source: Input; its halo covers the padding and holds the zero point.
        output: Output; its halo is written by the kernel.
        kernel: `(kh, kw)`.
        stride: `(sh, sw)`.
        padding: `(top, bottom, left, right)`; a negative one crops.
        dilation: `(dh, dw)`.
        groups: Channel groups.
        input_zero_point: Zero point of the input.
        output_zero_point: Zero point of the output (unused for accumulators).
        qmin: Lower clip.
        qmax: Upper clip.
        residual: Second operand or None.
        input_qmax: Largest input code.
    """

    source: Image
    output: Image
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_zero_point: int = 0
    output_zero_point: int = 0
    qmin: int = 0
    qmax: int = 255
    residual: Residual | None = None
    input_qmax: int = 255

    def __post_init__(self) -> None:
        for axis, (size, result) in enumerate(
            ((self.source.h, self.output.h), (self.source.w, self.output.w))
        ):
            before, after = self.padding[2 * axis : 2 * axis + 2]
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            expected = (size + before + after - reach) // self.stride[axis] + 1
            if result != expected:
                raise self._invalid(f"output size {result} on axis {axis} is not {expected}")
        if any(p > h for p, h in zip(self.padding, self.source.halo, strict=True)):
            raise self._invalid(f"halo {self.source.halo} is smaller than the padding")
        if self.source.n != self.output.n:
            raise self._invalid("batch sizes differ")
        if self.source.c % self.groups or self.output.c % self.groups:
            raise self._invalid("groups do not divide the channels")

    def _invalid(self, why: str) -> UnsupportedError:
        return UnsupportedError(
            "inconsistent convolution",
            where=str(self),
            why=why,
            remedy="this is an error of the lowering that made the problem; report it",
        )

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group."""
        return self.groups == self.source.c == self.output.c

    @property
    def input_bounds(self) -> tuple[int, int]:
        """Smallest and largest input as stored."""
        offset = code_offset(self.source.dtype)
        return offset, self.input_qmax + offset

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1]

    @property
    def grid(self) -> OutputGrid:
        """Grid of the result."""
        return OutputGrid(self.output_zero_point, self.qmin, self.qmax)

    @property
    def stored_input_zero_point(self) -> int:
        """Zero point of the input as stored."""
        return self.input_zero_point + code_offset(self.source.dtype)

    @property
    def geometry(self) -> str:
        """The window, for kernel names."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        top, left = self.padding[0], self.padding[2]
        pad = f"p{top}_{left}".replace("-", "n")
        dilation = "" if self.dilation == (1, 1) else f"d{dh}x{dw}"
        groups = "" if self.groups == 1 else f"g{self.groups}"
        return f"k{kh}x{kw}s{sh}x{sw}{pad}{dilation}{groups}"
