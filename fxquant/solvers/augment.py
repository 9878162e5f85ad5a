"""More samples than there are: mirrored images with patches of each other, labelled by the network.

The float network answers for any image, so what a student learns from need not be natural:

    x' = mirror(x) with probability 1/2;   x'[box] = x'_other[box];   target = f(x')

One box a batch, of the same place in all its images, its area uniform in [0, 1] (the partner of
each image is drawn). Trained on the few hundred calibration images alone, a whole network learns
them by heart.

Source: Yun et al., "CutMix", ICCV 2019, equation 1 and its sampling of boxes (ours is never cut off
at the edges); labels by the teacher instead of mixed ones: Beyer et al., "Knowledge distillation: A
good teacher is patient and consistent", CVPR 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """As many new images.

    Args:
        images: `[B, C, H, W]`, in any memory format, which the result keeps.
        rng: Randomness.
    """
    count = len(images)
    mirrored = torch.rand((count, 1, 1, 1), generator=rng).to(images.device) < 0.5
    result = torch.where(mirrored, images.flip(3), images)
    partner = torch.randperm(count, generator=rng).to(images.device)
    side = float(torch.rand((), generator=rng)) ** 0.5
    rows, columns = (_span(size, side, rng) for size in images.shape[2:])
    result[:, :, rows, columns] = result[:, :, rows, columns][partner]
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else (
        torch.contiguous_format
    )  # fmt: skip
    return result.contiguous(memory_format=layout)


def _span(size: int, part: float, rng: torch.Generator) -> slice:
    """A part of an axis, anywhere."""
    length = round(size * part)
    start = int(torch.randint(size - length + 1, (), generator=rng))
    return slice(start, start + length)
