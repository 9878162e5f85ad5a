"""Zip archives nobody should trust: how much they unpack to is checked before they are unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fxquant.errors import FileFormatError

LARGEST = 4 << 30  # bytes


def check_archive(path: Path, largest: int = LARGEST) -> None:
    """Refuse what is no archive, or unpacks to more than `largest` bytes.

    Raises:
        FileFormatError: See above.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FileFormatError(
            f"cannot read the archive: {error}", where=str(path),
            why="it is damaged, or no archive",
        ) from error  # fmt: skip
    if total > largest:
        raise FileFormatError(
            f"the archive unpacks to {total / 2**30:.1f} GiB",
            where=str(path),
            why=f"at most {largest / 2**30:.1f} GiB are read",
            remedy="use fewer samples, or .npy files, which are read piece by piece",
        )
