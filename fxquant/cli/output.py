"""What commands print and write: a result as data and as text, plain tables, files."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxquant.errors import ConfigError


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


def check_output(path: Path, *suffixes: str) -> None:
    """Whether a file can be written, before the work starts; makes its folder.

    Args:
        path: The file.
        suffixes: Endings it may have; none for any.

    Raises:
        ConfigError: It cannot, or has another ending.
    """
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(
            f"{path} is no {' or '.join(suffixes)} file",
            why="the commands that read it tell by its ending what it is",
            remedy=f"name it {path.with_suffix(suffixes[0])}",
        )
    make_folder(path.parent)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", remedy="name a file in it")


def make_folder(folder: Path) -> None:
    """Make a folder for files to be written, before the work starts.

    Raises:
        ConfigError: It cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error.strerror or type(error).__name__) from error
    if not os.access(folder, os.W_OK):
        raise _unwritable(folder, "it is read-only")


def _unwritable(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the folder {folder} cannot be written to",
        why=why,
        remedy="name an output in another folder",
    )


def show_progress() -> bool:
    """Whether progress bars make sense: somebody looks at stderr."""
    return sys.stderr.isatty()
