"""The interface of a multiply-accumulate idiom: what a GEMM inner loop needs from an ISA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from fxquant.targets import MacIdiom


class Mac(Protocol):
    """Emits `acc[l] += sum_r activation[r] * weight[l, r]` on accumulator vectors, exactly.

    Accumulators hold one pixel, or several of a `MatrixMac`; `pixels.py` serves both.
    A weight vector is `lanes * reduction` int8 codes in memory, `[lanes][reduction]`; in
    registers it has the form its own `multiply_accumulate` wants.
    """

    @property
    def idiom(self) -> MacIdiom:
        """The description this implements; lanes, storage and accumulators are read from it."""
        ...

    @property
    def unroll(self) -> int:
        """Reduction steps whose activations are loaded at once; callers unroll by it."""
        ...

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """The weight vector at `offset` of an int8 buffer."""
        ...

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """Activations of `steps` consecutive reduction steps, each broadcast to all lanes.

        Reads exactly `steps * reduction` elements; `steps` is 1 or `unroll`.
        """
        ...

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """The new accumulator.

        Args:
            acc: The old one.
            activations: Operands of one or more reduction steps; at most `idiom.chain` of them
                where the idiom has a chain.
            weights: As many.
        """
        ...


@runtime_checkable
class RowMac(Mac, Protocol):
    """A Mac of one pixel; it serves depthwise layers as well."""

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """Activations for depthwise layers: lane l holds element l of every row.

        Args:
            rows: `reduction` vectors of `vectors * lanes` stored activations.
            vectors: Accumulator vectors covered: 1, 2 or 4.

        Returns:
            `vectors` operands whose lanes are in the epilogue's accumulator order.
        """
        ...


@runtime_checkable
class StepMac(Mac, Protocol):
    """A Mac whose chains can be built step by step, those of all accumulators side by side."""

    def extend(self, total: Any | None, activation: Any, weight: Any) -> Any:
        """The sum of a chain and one more product; `total` is None at its first step."""
        ...

    def finish(self, acc: Any, total: Any) -> Any:
        """The accumulator and the sum of a chain."""
        ...


@runtime_checkable
class TapMac(StepMac, Protocol):
    """A Mac of one product a lane and step, for depthwise layers: nothing is interleaved.

    An accumulator has the lanes of two vectors of the output stage.
    """

    def halves(self, acc: Any) -> list[Any]:
        """The accumulator as vectors of the output stage."""
        ...


@runtime_checkable
class MatrixMac(Mac, Protocol):
    """A Mac of `idiom.pixels` pixels: every step multiplies them all by the same weights.

    An accumulator has `pixels * lanes` elements in an order of its own. `load_activations` loads
    one pixel, without broadcasting it.
    """

    def join(self, pixels: Sequence[Any]) -> Any:
        """The operand of several pixels; what stands for missing ones does not matter."""
        ...

    def spread(self, row: Any) -> Any:
        """The accumulator whose pixels all hold `row`, a vector of `lanes`."""
        ...

    def rows(self, acc: Any) -> list[Any]:
        """One vector of `lanes` a pixel."""
        ...
