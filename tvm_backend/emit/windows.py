"""Runs of equal pooling windows.

The windows of a strided pool are all alike except at the borders. A run is a stretch of output
indices whose windows have one size and step and start at a constant distance: it becomes a loop
with constant offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Window = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """Output indices `first .. first+count-1`, windows `start + i*stride`, of `size` taps.

    Attributes:
        first: First output index.
        count: Output indices.
        start: First input index of the first window.
        stride: Distance of windows.
        size: Taps.
        step: Distance of taps.
    """

    first: int
    count: int
    start: int
    stride: int
    size: int
    step: int

    def tap(self, i: Any, k: Any) -> Any:
        """Input index of tap `k` of the `i`-th window of the run."""
        return self.start + i * self.stride + k * self.step


def runs(windows: Sequence[Window]) -> tuple[Run, ...]:
    """Split windows into the fewest greedy runs."""
    found: list[Run] = []
    for index, (start, stop, step) in enumerate(windows):
        size = len(range(start, stop, step))
        last = found[-1] if found else None
        if last and (last.size, last.step) == (size, step):
            distance = start - last.start
            if last.count == 1 or distance == last.stride * last.count:
                stride = distance if last.count == 1 else last.stride
                found[-1] = Run(last.first, last.count + 1, last.start, stride, size, step)
                continue
        found.append(Run(index, 1, start, 0, size, step))
    return tuple(found)
