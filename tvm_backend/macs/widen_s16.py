"""16-bit activations on any LLVM target: plain products that LLVM vectorizes as it can.

In int32 where the weights prove that it cannot overflow, else in int64; in uint32 where sums are
wanted modulo 2^32. LLVM knows that the factors are sign-extended and picks `smlal`, `pmuldq` and
the like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class WidenS16:
    """See the module docstring."""

    idiom: MacIdiom
    unroll: int = 1

    @property
    def _vector(self) -> str:
        return f"{self.idiom.accumulator}x{self.idiom.lanes}"

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """Codes as accumulators."""
        return T.cast(load(buffer, offset, self.idiom.lanes), self._vector)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One activation a step."""
        lanes = self.idiom.lanes
        words = [T.cast(buffer[offset + i], self.idiom.accumulator) for i in range(steps)]
        return [T.broadcast(word, lanes) for word in words]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """One row; nothing to interleave."""
        lanes = self.idiom.lanes
        if vectors == 1:
            return [rows[0]]
        return [shuffle(rows[:1], range(i, i + lanes)) for i in range(0, lanes * vectors, lanes)]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """A multiplication and an addition a step; operands may have been widened before."""
        for a, w in zip(activations, weights, strict=True):
            acc = acc + T.cast(a, self._vector) * T.cast(w, self._vector)
        return acc


def widen(mac: MacIdiom, accumulator: str) -> WidenS16:
    """The idiom for a target, with as many bits a vector as its idiom for 8-bit activations."""
    lanes = mac.lanes // 2 if accumulator == "int64" else mac.lanes
    name = f"widen_s16_{accumulator}x{lanes}"
    return WidenS16(MacIdiom(name, lanes, 1, True, mac.registers, 16, accumulator))
