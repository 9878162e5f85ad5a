"""Windows of large maps: a step of training does not need every position of its images.

Early layers have few weights and many positions. A window of each of many images teaches them more
than all positions of a few, at the same cost. Positions near the rim of a window see zeros instead
of their neighbours; how far that reaches is measured once, and they do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.solvers.base import UnitProblem

_TOLERANCE = 1e-3  # relative: what differs more is the rim


@dataclass(frozen=True, slots=True)
class Crop:
    """Square windows of a unit's inputs and the part of its results that they determine.

    Attributes:
        height: Rows of the inputs.
        width: Columns of the inputs.
        size: Rows and columns of a window.
        stride: Input positions for one output position.
        rim: Output positions at each edge of a window that do not count.
    """

    height: int
    width: int
    size: int
    stride: int
    rim: int

    def draw(self, rng: torch.Generator) -> tuple[int, int]:
        """Top and left of a window, in output positions."""
        spans = ((side - self.size) // self.stride + 1 for side in (self.height, self.width))
        top, left = (
            int(torch.randint(span, (), generator=rng, device=rng.device)) for span in spans
        )
        return top, left

    def of_input(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The window of an input."""
        top, left = (p * self.stride for p in place)
        return x[:, :, top : top + self.size, left : left + self.size]

    def of_target(self, y: Tensor, place: tuple[int, int]) -> Tensor:
        """The part of a full result that counts."""
        top, left = (p + self.rim for p in place)
        side = self.size // self.stride - 2 * self.rim
        return y[:, :, top : top + side, left : left + side]

    def of_result(self, y: Tensor) -> Tensor:
        """The part of a window's result that counts."""
        rim = slice(self.rim, y.shape[2] - self.rim)
        return y[:, :, rim, rim]


@torch.no_grad()
def find_crop(problem: UnitProblem, size: int) -> Crop | None:
    """Windows for a unit; None if its maps are small or a result depends on the whole map."""
    inputs = list(problem.float_inputs.values())
    targets = list(problem.targets.values())
    images = all(v.ndim == 4 and len(v) == problem.samples for v in (*inputs, *targets))
    if not images or problem.batch is not None:
        return None
    height, width = inputs[0].shape[2:]
    same = all(v.shape[2:] == (height, width) for v in inputs)
    if not same or min(height, width) * 2 < size * 3:
        return None
    stride = height // targets[0].shape[2]
    if (
        stride < 1
        or size % stride
        or any(t.shape[2:] != (height // stride, width // stride) for t in targets)
    ):
        return None
    crop = Crop(height, width, size, stride, 0)
    place = ((height - size) // stride // 2, (width - size) // stride // 2)
    first = torch.arange(1)
    window = {
        n: crop.of_input(problem.rows_of(v, first), place) for n, v in problem.float_inputs.items()
    }
    try:
        results = problem.program.run(window)
    except (IndexError, RuntimeError):  # an operator addresses positions of the full map
        return None
    rims = _rims(crop, results, problem.targets, place)
    rim = max(rims, default=0)
    return Crop(height, width, size, stride, rim) if 4 * rim < size // stride else None


def _rims(
    crop: Crop, results: Mapping[str, Tensor], targets: Mapping[str, Tensor], place: tuple[int, int]
) -> list[int]:
    """How far from its edges each result of a window is wrong."""
    rims: list[int] = []
    for name, result in results.items():
        expected = crop.of_target(targets[name][:1], place).to(result.device)
        if result.shape != expected.shape:
            return [crop.size]
        limit = _TOLERANCE * float(expected.abs().max())
        wrong = ((result - expected).abs() > limit).amax((0, 1))  # [h, w]
        side = wrong.shape[0]
        depth = torch.minimum(torch.arange(side), torch.arange(side - 1, -1, -1)) + 1
        distance = torch.minimum(depth[:, None], depth[None, :])
        rims.append(int((distance * wrong).max()))
    return rims
