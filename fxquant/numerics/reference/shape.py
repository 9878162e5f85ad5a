"""Operators that move codes without computing; they serve float graphs as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Row-major reshape; a leading 0 keeps the batch axis, one -1 is inferred."""
    return x.reshape([x.shape[0] if i == 0 and d == 0 else d for i, d in enumerate(shape)])


def permute(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Transpose axes."""
    return x.permute(dims).contiguous()


def slice_axis(x: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
    """`x[..., start:stop:step, ...]` on one axis, `0 <= start < stop <= size`, step > 0."""
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def channel_shuffle(x: Tensor, *, groups: int) -> Tensor:
    """`[N, g*c, ...]` -> interleave the g groups along axis 1."""
    n, c = x.shape[:2]
    return x.reshape(n, groups, c // groups, -1).transpose(1, 2).reshape(x.shape)


def pad(x: Tensor, *, pads: tuple[tuple[int, int], ...], value: float) -> Tensor:
    """Constant padding, one `(before, after)` an axis (negative crops); on codes value is one."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value)


def gather2d(x: Tensor, *, rows: tuple[int, ...], cols: tuple[int, ...]) -> Tensor:
    """`x[:, :, rows][:, :, :, cols]`: nearest resize, reflection and replication padding."""
    index_rows = torch.tensor(rows, dtype=torch.int64, device=x.device)
    index_cols = torch.tensor(cols, dtype=torch.int64, device=x.device)
    return x[:, :, index_rows][..., index_cols]
