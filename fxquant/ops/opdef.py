"""OpDef: what the compiler must know of an operator, and the records its integer form is made of.

An operator is a plain function on float tensors: the target of its fx node. Tensor operands are
the node's positional arguments, everything static is a keyword argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.errors import NumericsError
from fxquant.numerics.types import QParams, QTensor
from fxquant.numerics.width import WIDTH_8, Width, width_of
from fxquant.ops.clamp import Clamp


class Grid(Enum):
    """Which grid an operator's result lies on."""

    OWN = "own"  # calibrated for the result
    SHARED = "shared"  # that of the first operand: the operator only moves or selects values


@dataclass(frozen=True, slots=True)
class Operand:
    """The per-tensor grid of an activation, as plain numbers."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @classmethod
    def of(cls, qparams: QParams) -> Operand:
        """From per-tensor QParams."""
        dtype = qparams.spec.dtype
        return cls(float(qparams.scale), int(qparams.zero_point), dtype.qmin, dtype.qmax)

    def clip(self, clamp: Clamp | None) -> tuple[int, int]:
        """Code range after a clamp in real values."""
        lower, upper = clamp or (None, None)
        low = self.qmin if lower is None else max(self.qmin, self.code(lower))
        high = self.qmax if upper is None else min(self.qmax, self.code(upper))
        return min(low, self.qmax), max(high, self.qmin)

    def result(self, clamp: Clamp | None = None) -> dict[str, int]:
        """Arguments of a reference operator whose result lies on this grid."""
        qmin, qmax = self.clip(clamp)
        wide = {} if self.width is WIDTH_8 else {"width": self.width.bits}
        return {"output_zero_point": self.zero_point, "qmin": qmin, "qmax": qmax, **wide}

    @property
    def width(self) -> Width:
        """Width of the codes' carrier."""
        return width_of(self.qmax.bit_length())

    @property
    def span(self) -> int:
        """Largest magnitude of `code - zero_point`."""
        return max(self.qmax - self.zero_point, self.zero_point - self.qmin)

    def holds(self, operand: Operand) -> bool:
        """Whether an operand can be summed on this grid without saturating."""
        return operand.scale / self.scale <= self.width.largest_ratio(operand.span)

    def code(self, real: float) -> int:
        """Nearest code of a real value, not clipped."""
        limited = max(min(real / self.scale, 1e9), -1e9)
        return round(limited) + self.zero_point

    def codes(self) -> Tensor:
        """Real values of all codes of the carrier, float64 `[256]` or `[65536]`."""
        levels = torch.arange(1 << self.width.bits, dtype=torch.float64)
        return (levels - self.zero_point) * self.scale


@dataclass(frozen=True, slots=True)
class Input:
    """Stands for an activation operand in `IntegerCall.args`."""

    name: str
    index: int | None = None  # position inside a tuple operand (concat)


@dataclass(frozen=True, slots=True)
class QuantCall:
    """One call of an operator together with the grids of its operands and result.

    Attributes:
        name: Node name, for errors.
        args: Arguments by parameter name; activations are absent, other tensors present.
        inputs: Grid of every activation operand, a tuple for a list operand.
        weight: Quantized weight, if the operator has one.
        output: Grid of the result; None if the result is a float made from the accumulators.
        rank: Rank of the result.
    """

    name: str
    args: Mapping[str, Any]
    inputs: Mapping[str, Any]
    weight: QTensor | None
    output: Operand | None
    rank: int

    def operand(self, name: str) -> Operand:
        """Grid of a single-tensor operand."""
        value = self.inputs[name]
        assert isinstance(value, Operand)
        return value

    def check_sum(self, *names: str) -> None:
        """Raise unless the result's grid leaves the summed operands headroom.

        Raises:
            NumericsError: Terms of the sum could saturate visibly.
        """
        for name in names:
            operand, output = self.operand(name), self.output
            if output is not None and not output.holds(operand):
                raise NumericsError(
                    f"the scale of the sum is too fine for its operand {name}",
                    where=self.name,
                    why="its terms would saturate although the sum is in range",
                    remedy="calibrate again, or give the result a larger range",
                )


@dataclass(frozen=True, slots=True)
class FloatOutput:
    """How accumulators become floats: `acc * scale` along `axis`, then the clamp."""

    scale: Tensor
    axis: int
    clamp: Clamp


@dataclass(frozen=True, slots=True)
class IntegerCall:
    """The call of a reference operator that replaces a float call."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]  # Input, tuple of Input, Tensor or None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    float_output: FloatOutput | None = None


@dataclass(frozen=True, slots=True)
class OpDef:
    """An operator with an integer form.

    Attributes:
        function: Float semantics and target of its fx nodes.
        grid: Where the result's grid comes from.
        parameters: Names of the positional (tensor) parameters.
        operands: Those of them that are activations.
        integer: Makes the integer call.
        weighted: Has parameters `weight` `[O, ...]` and `bias`.
        accumulates: Can deliver a float result from its accumulators.
        clamps: Has a `clamp` argument that a following clamp fuses into.
        summed: Operands that are added on the grid of the result, which must leave them headroom.
        moves: Copies values without changing any, so it serves floats and codes alike.
    """

    function: Callable[..., Any]
    grid: Grid
    parameters: tuple[str, ...]
    operands: tuple[str, ...]
    integer: Callable[[QuantCall], IntegerCall]
    weighted: bool = False
    accumulates: Callable[[Mapping[str, Any]], bool] = lambda args: False
    clamps: bool = False
    summed: tuple[str, ...] = ()
    moves: bool = False

    def bind(self, node: Node) -> dict[str, Any]:
        """All arguments of a call by parameter name; absent and None tensors are left out."""
        named = dict(zip(self.parameters, node.args, strict=False))
        return {k: v for k, v in named.items() if v is not None} | dict(node.kwargs)
