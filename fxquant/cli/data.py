"""Data of the command line: arrays in `.npy` and `.npz` files, read in batches."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fxquant.cli.archives import check_archive
from fxquant.cli.images import ImageFolder
from fxquant.errors import CalibrationError, FileFormatError

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError,
               RecursionError, zipfile.BadZipFile)  # fmt: skip


class Batches(Protocol):
    """Batches of model inputs, which can be read more than once."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]: ...

    def __len__(self) -> int: ...


def read_data(arguments: argparse.Namespace, shapes: Sequence[Sequence[int | None]]) -> Batches:
    """The data that `--data` names.

    Args:
        arguments: With the options of `add_data`.
        shapes: Shapes of the model's inputs, batch first, as far as they are known.

    Raises:
        CalibrationError: There is no data, or it is of a wrong kind.
        ConfigError: Images need an option that is missing.
        FileFormatError: A file is damaged.
    """
    paths: list[Path] = arguments.data
    if len(paths) == 1 and paths[0].is_dir():
        shape = shapes[0] if shapes else ()
        return ImageFolder.of(paths[0], shape, arguments)
    arrays = read_npz(paths[0]) if [p.suffix for p in paths] == [".npz"] else {
        str(path): read_npy(path) for path in paths
    }  # fmt: skip
    return Arrays.of(arrays, arguments.batch, arguments.samples)


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Rows of arrays.

    Attributes:
        arrays: One `[N, ...]` an input.
        rows: The rows that are used.
        batch: Rows at once.
    """

    arrays: tuple[np.ndarray, ...]
    rows: np.ndarray
    batch: int

    @staticmethod
    def of(named: dict[str, np.ndarray], batch: int, samples: int) -> Arrays:
        """Arrays by name; of many rows, `samples` at equal distances are used."""
        counts = {name: len(a) if a.ndim else 0 for name, a in named.items()}
        if len(set(counts.values())) != 1 or not min(counts.values()):
            raise CalibrationError(
                f"the data has {', '.join(f'{n} samples in {k}' for k, n in counts.items())}",
                remedy="give every input the same number of samples, on the first axis",
            )
        for name, array in named.items():
            check_floats(array, name)
        return Arrays(tuple(named.values()), spread(next(iter(counts.values())), samples), batch)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(self.rows), self.batch):
            rows = self.rows[start : start + self.batch]
            parts = (np.asarray(a[rows], np.float32) for a in self.arrays)
            yield tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)


def spread(count: int, wanted: int) -> np.ndarray:
    """Indices of at most `wanted` of `count` things, at equal distances."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def check_floats(array: np.ndarray, name: str) -> None:
    """Refuse pixels as they come out of an image: networks are trained on scaled ones.

    Raises:
        CalibrationError: The array has other numbers.
    """
    if array.dtype.kind != "f":
        raise CalibrationError(
            f"the data is of type {array.dtype}",
            where=name,
            remedy="store floats, scaled as the network was trained with",
        )


def read_npy(path: Path) -> np.ndarray:
    """An array that stays on disk until it is used.

    Raises:
        FileFormatError: The file is missing, damaged, or needs pickle.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path} holds several arrays", remedy="name it .npz")
    return array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive, by name, in their order.

    Raises:
        FileFormatError: As in `read_npy`, or the archive unpacks to too much.
    """
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {i.filename: _member(archive, i, path) for i in archive.infolist()}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array; its header must promise no more bytes than the member has."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
        if version not in read:
            raise FileFormatError(f"{info.filename} has format {version}", where=str(path))
        shape, _, dtype = read[version](file)
        if np.prod(shape, dtype=object) * dtype.itemsize + file.tell() != info.file_size:
            raise FileFormatError(f"{info.filename} does not fill its shape", where=str(path))
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _unreadable(path: Path, error: BaseException) -> FileFormatError:
    return FileFormatError(
        f"cannot read the array: {type(error).__name__}: {str(error)[:300]}",
        where=str(path),
        why="the file is missing, damaged, or holds Python objects",
        remedy="write it with numpy.save or numpy.savez",
    )
