"""ARMv8.6 i8mm: `usmmla`, a 2 x 8 matrix u8 times a 8 x 2 matrix s8, summed into 2 x 2 int32.

The rows are two pixels, the columns two output channels. Four channels make an accumulator of two
registers, `[channel pair][pixel][channel]`. A pixel without a partner is multiplied twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.targets import MacIdiom
from fxquant.targets.idioms import USMMLA
from tvm_backend.macs.vector import concat, llvm, load, shuffle
from tvm_backend.tvm_api import T

_DEPTH = 8  # reduction of an instruction
_PAIRS = (range(4), range(4, 8))  # elements of each register of an accumulator


@dataclass(frozen=True, slots=True)
class Usmmla:
    """See the module docstring; 16 bytes of a pixel are two steps."""

    idiom: MacIdiom = USMMLA
    unroll: int = 2

    def load_weights(self, buffer: Any, offset: Any) -> Any:
        """32 codes: two registers, each of two channels."""
        return load(buffer, offset, 4 * _DEPTH)

    def load_activations(self, buffer: Any, offset: Any, steps: int) -> list[Any]:
        """Eight bytes a step."""
        codes = T.Bind(load(buffer, offset, steps * _DEPTH))
        if steps == 1:
            return [codes]
        return [shuffle([codes], range(i * _DEPTH, (i + 1) * _DEPTH)) for i in range(steps)]

    def join(self, pixels: Sequence[Any]) -> Any:
        """`zip1` or `zip2` of 64-bit lanes; `dup` for a single pixel."""
        return concat([pixels[0], pixels[-1]], _DEPTH)

    def multiply_accumulate(
        self, acc: Any, activations: Sequence[Any], weights: Sequence[Any]
    ) -> Any:
        """Two instructions a step, one for each pair of channels."""
        whole = T.Bind(acc)
        pairs = [shuffle([whole], pair) for pair in _PAIRS]
        for a, w in zip(activations, weights, strict=True):
            halves = [shuffle([w], range(i, i + 2 * _DEPTH)) for i in (0, 2 * _DEPTH)]
            pairs = [
                llvm("int32x4", "llvm.aarch64.neon.usmmla.v4i32.v16i8", pair, a, half)
                for pair, half in zip(pairs, halves, strict=True)
            ]
        return concat(pairs, 4)

    def spread(self, row: Any) -> Any:
        """Every pair of channels twice."""
        return shuffle([row, row], (0, 1, 4, 5, 2, 3, 6, 7))

    def rows(self, acc: Any) -> list[Any]:
        """`zip1`, `zip2` of 64-bit lanes."""
        return [shuffle([acc], pick) for pick in ((0, 1, 4, 5), (2, 3, 6, 7))]
