"""The C library's allocator: keep freed memory while large tensors come and go.

glibc returns large blocks to the system as soon as they are freed, and the next one is fetched page
by page, zeroed: for the values of a network this costs as much as computing them. Within
`kept_memory` freed blocks stay with the process. Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # parameters of mallopt(3)
_WITHIN = {_MMAP: 1 << 30, _TRIM: -1, _TOP_PAD: 64 << 20}  # bytes; -1: never
_AFTER = {_MMAP: 32 << 20, _TRIM: 64 << 20, _TOP_PAD: 128 << 10}  # where glibc's own end up


@contextmanager
def kept_memory() -> Iterator[None]:
    """Large blocks that are freed inside are reused; afterwards they go back to the system."""
    library = ctypes.CDLL(None)
    present = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    if not present:
        yield
        return
    _set(library, _WITHIN)
    try:
        yield
    finally:
        _set(library, _AFTER)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        library.mallopt(parameter, value)
