"""Memory for cached activations: a limited part of it, files mapped into memory beyond.

Tensors are made where the solvers work. Files are the CPU's: what is read of them is copied there.
"""

from __future__ import annotations

import shutil
import tempfile
from math import prod

import torch
from torch import Tensor

from fxquant.errors import CalibrationError

_RESERVE = 64 << 20  # bytes left free on the disk


def span_of(x: Tensor, start: int, stop: int, samples: int) -> Tensor:
    """Neighbouring samples of a tensor that holds `samples`, each in one row or in several."""
    return x[start * len(x) // samples : stop * len(x) // samples]


def rows_of(x: Tensor, chosen: Tensor, samples: int) -> Tensor:
    """Some samples of a tensor, in its memory format, on the device of `chosen`.

    Args:
        x: Holds `samples`, each in one row or in several: reshapes may fold axes into the first.
        chosen: Their numbers.
        samples: How many there are.
    """
    near = chosen.to(x.device)
    if len(x) != samples:
        rows = torch.arange(len(x))
        spans = [span_of(rows, n, n + 1, samples) for n in chosen.tolist()]
        near = torch.cat(spans).to(x.device)
    if x.ndim == 4:
        picked = x.permute(0, 2, 3, 1).index_select(0, near).permute(0, 3, 1, 2)
    else:
        picked = x.index_select(0, near)
    return picked.to(chosen.device)


class ActivationMemory:
    """Allocates tensors; those that do not fit the limit live in a temporary file.

    The file has no name and vanishes with its tensor, even if the process is killed.

    Args:
        limit: Bytes of memory to use.

    Attributes:
        used: Bytes of memory in use.
        spilled: Bytes on disk over the whole life.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.spilled = limit, 0, 0
        self._in_memory: dict[int, int] = {}  # data pointer -> bytes

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialized float32 tensor; images have their channels innermost.

        Raises:
            CalibrationError: It fits neither the limit nor the disk.
        """
        size = dtype.itemsize * prod(shape)
        if self.used + size > self.limit:
            flat = self._on_disk(shape, size, dtype)
        else:
            flat = torch.empty(prod(shape), dtype=dtype)
            self.used += size
            self._in_memory[flat.data_ptr()] = size
        if len(shape) != 4:
            return flat.view(shape)
        n, c, h, w = shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)

    def free(self, tensor: Tensor) -> None:
        """Give back the memory of a tensor that is not needed any more."""
        self.used -= self._in_memory.pop(tensor.data_ptr(), 0)

    def _on_disk(self, shape: tuple[int, ...], size: int, dtype: torch.dtype) -> Tensor:
        directory = tempfile.gettempdir()
        available = shutil.disk_usage(directory).free
        if size + _RESERVE > available:
            raise CalibrationError(
                f"no room for {size >> 20} MiB of activations",
                where=directory,
                why=f"{self.limit >> 20} MiB of memory are taken, {available >> 20} MiB of disk "
                "are free",
                remedy="use fewer calibration images, raise `memory`, or set TMPDIR to a larger "
                "disk",
            )
        self.spilled += size
        with tempfile.NamedTemporaryFile(prefix="fxquant-") as file:
            file.truncate(size)
            return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype)
