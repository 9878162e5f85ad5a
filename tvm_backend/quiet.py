"""Keeps TVM's noise off the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = (
    "Scope Saving", "Scope Loaded",  # about every constant
    "Fast mode segfaults",  # about every gather; torch has checked the indices
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the lines of noise; everything else that is logged is passed on."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            rest = [line for line in lines if not any(noise in line for noise in _NOISE)]
            if rest:
                print("\n".join(rest), file=sys.stderr)
