"""A folder of images as calibration data. Needs Pillow."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import CalibrationError, ConfigError

SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder:
    """Images below a folder, scaled, cut and normalized.

    Attributes:
        paths: The images.
        channels: 3, or 1 for grey.
        size: Height and width.
        resize: The shorter side is scaled to it first; None scales as little as `size` needs.
        mean: Of each channel, `[C, 1, 1]`, in units of 0..1.
        std: Of each channel, `[C, 1, 1]`.
        batch: Images at once.
    """

    paths: tuple[Path, ...]
    channels: int
    size: tuple[int, int]
    resize: int | None
    mean: np.ndarray
    std: np.ndarray
    batch: int

    @staticmethod
    def of(folder: Path, shape: Sequence[int | None], arguments: argparse.Namespace) -> ImageFolder:
        """The folder's images; of many, `samples` at equal distances in the order of their paths.

        Args:
            folder: It and its subfolders are searched.
            shape: Shape of the model's input as far as it is known.
            arguments: With the options of `add_data`.

        Raises:
            CalibrationError: There are no images.
            ConfigError: Pillow or an option is missing, or options make no sense.
        """
        if find_spec("PIL") is None:
            raise ConfigError(
                "images are read with Pillow", why="it is not installed",
                remedy='pip install "fxquant[images]", or store the data as .npy',
            )  # fmt: skip
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise CalibrationError(
                "the folder has no images", where=str(folder),
                remedy=f"files must end in {', '.join(sorted(SUFFIXES))}",
            )  # fmt: skip
        channels, *known = shape[1:] if len(shape) == 4 else (None, None, None)
        size = arguments.size or _plane(known)
        if size is None:
            raise ConfigError("the size of the images is not known", remedy="pass --size")
        channels = channels or 3
        if channels not in (1, 3):
            raise ConfigError(
                f"the model takes {channels} channels, images have 3 or 1",
                remedy="store the data as .npy",
            )
        chosen = np.linspace(0, len(found) - 1, min(len(found), arguments.samples)).round()
        paths = tuple(found[int(i)] for i in dict.fromkeys(chosen))
        resize = arguments.resize
        if resize is not None and resize < max(size):
            raise ConfigError(
                f"--resize {resize} is smaller than the images wanted, {size[0]}x{size[1]}",
                remedy="pass a larger one, or leave it out",
            )
        mean = _per_channel(arguments.mean, channels, "--mean")
        std = _per_channel(arguments.std, channels, "--std")
        if not bool((std > 0).all()):
            raise ConfigError("--std must be positive")
        return ImageFolder(paths, channels, size, resize, mean, std, arguments.batch)

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(self.paths), self.batch):
            images = [self._read(p) for p in self.paths[start : start + self.batch]]
            yield (torch.from_numpy(np.stack(images)),)

    def _read(self, path: Path) -> np.ndarray:
        """One image, float32 `[C, H, W]`."""
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    pixels = self._cut(image.convert("RGB" if self.channels == 3 else "L"))
        except (OSError, ValueError, SyntaxError, TypeError, MemoryError, EOFError,
                Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # fmt: skip
            raise CalibrationError(
                f"cannot read an image: {error}", where=str(path), remedy="remove or repair it"
            ) from error
        planes = pixels.reshape(*self.size, self.channels).transpose(2, 0, 1)
        return ((planes / np.float32(255) - self.mean) / self.std).astype(np.float32)

    def _cut(self, image: Any) -> np.ndarray:
        """Scaled, then the centre."""
        from PIL import Image

        height, width = self.size
        if self.resize is None:
            factor = max(height / image.height, width / image.width)
        else:
            factor = self.resize / min(image.height, image.width)
        sides = ((image.width, width), (image.height, height))
        scaled = tuple(max(round(old * factor), new) for old, new in sides)
        if max(scaled) > 64 * max(self.size):
            raise ValueError(f"its sides {image.size} differ too much")
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        return np.asarray(image.crop((left, top, left + width, top + height)))


def _plane(known: Sequence[int | None]) -> tuple[int, int] | None:
    height, width = known
    return None if height is None or width is None else (height, width)


def _per_channel(values: tuple[float, ...], channels: int, option: str) -> np.ndarray:
    if len(values) not in (1, channels):
        raise ConfigError(f"{option} has {len(values)} values, the images have {channels} channels")
    return np.broadcast_to(np.array(values, np.float32), (channels,)).reshape(-1, 1, 1)
