"""Numbers of a requantization as data of its kernel: calls that differ in nothing else share code.

Shifts and clip bounds change the instructions, so they stay in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_backend.call import Call, Value
from tvm_backend.emit.naming import kernel_name
from tvm_backend.emit.requant import Grid, output_grid
from tvm_backend.kernel import Param


@dataclass(frozen=True, slots=True)
class Scalars:
    """Integers; while a kernel is built, the elements of its constant that hold them.

    Attributes:
        zero_points: Stored zero point of each operand.
        multipliers: The m's.
        zero_point: Stored zero point of the result.
        fill: What the halo of the result holds (stored).
    """

    zero_points: tuple[Any, ...]
    multipliers: tuple[Any, ...]
    zero_point: Any
    fill: Any

    @staticmethod
    def of(call: Call, zero_points: Sequence[int], multipliers: Sequence[int]) -> Scalars:
        """Those of a call.

        Args:
            call: A call whose result has a grid.
            zero_points: Zero point of each operand, of codes.
            multipliers: The m's.
        """
        stored = (z + value.offset for z, value in zip(zero_points, call.inputs, strict=True))
        result = Scalars.of_result(call)
        return replace(result, zero_points=tuple(stored), multipliers=tuple(multipliers))

    @staticmethod
    def of_result(call: Call) -> Scalars:
        """Those of a call's result alone."""
        return Scalars((), (), output_grid(call).zero_point, call.output.fill or 0)

    def constant(self) -> np.ndarray:
        """int32 array of all of them."""
        numbers = [*self.zero_points, *self.multipliers, self.zero_point, self.fill]
        return np.array(numbers, np.int32)

    def param(self) -> Param:
        """The kernel parameter for the constant."""
        return Param("scalars", self.constant().shape, "int32")

    def read(self, buffer: Any) -> Scalars:
        """The same numbers as elements of the parameter.

        Args:
            buffer: The parameter.
        """
        operands, multipliers = len(self.zero_points), len(self.multipliers)
        elements = [buffer[i] for i in range(operands + multipliers + 2)]
        return Scalars(
            tuple(elements[:operands]), tuple(elements[operands:-2]), elements[-2], elements[-1]
        )

    def grid(self, call: Call) -> Grid:
        """The grid of a call's result with this zero point."""
        return replace(output_grid(call), zero_point=self.zero_point)

    def placed(self, output: Value) -> Value:
        """A result whose halo holds this fill."""
        return output if output.fill is None else replace(output, fill=self.fill)


def shared_name(op: str, call: Call, *details: Any) -> str:
    """Name of a kernel whose scalars are data: of them it has the clip bounds alone.

    Args:
        op: Operator.
        call: A call whose result has a grid.
        *details: As of `kernel_name`.
    """
    grid, output = output_grid(call), call.output
    if output.fill is not None:
        output = replace(output, fill=0)
    return kernel_name(op, call.inputs, output, call.target, *details, grid.qmin, grid.qmax)
