"""Any LLVM target: one activation times four weights, in int32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from fxquant.targets.idioms import WIDEN
from tvm_backend.macs.vector import load, shuffle
from tvm_backend.tvm_api import T


@dataclass(frozen=True, slots=True)
class Widen:
    """See the module docstring."""

    idiom: MacIdiom = WIDEN
    unroll: int = 1

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """4 codes as int32."""
        return T.cast(load(buffer, offset, 4), "int32x4")

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """One activation a step."""
        return [T.broadcast(T.cast(buffer[offset + i], "int32"), 4) for i in range(steps)]

    def interleave(self, rows: list[Any], vectors: int) -> list[Any]:
        """One row, widened; nothing to interleave."""
        parts = (
            [rows[0]]
            if vectors == 1
            else [shuffle(rows[:1], range(i, i + 4)) for i in range(0, 4 * vectors, 4)]
        )
        return [T.cast(part, "int32x4") for part in parts]

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """A multiplication and an addition a step."""
        for a, w in zip(activations, weights, strict=True):
            acc = acc + a * w
        return acc
