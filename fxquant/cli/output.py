"""What commands print: a result as data and as text, and plain tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Of a command.

    Attributes:
        data: For machines: what `plain` turns into JSON.
        text: For people.
    """

    data: Mapping[str, Any]
    text: str


def plain(value: Any) -> Any:
    """A value as JSON has it; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned on the left."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def show_progress() -> bool:
    """Whether progress bars make sense: somebody looks at stderr."""
    return sys.stderr.isatty()
