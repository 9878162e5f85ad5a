"""The directory of pretrained checkpoints and images that accuracy is measured on."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

NETS = (
    "mobilenet_v2_1.0_224",
    "mobilenet_v1_0.75_224",
    "squeezenet1_1",
    "googlenet_bvlc",
    "cifar10_resnet20",
    "cifar10_resnet56",
)
_SETS = {
    "imagenet": ("imagenet_train", "imagenet_like_test"),
    "cifar10": ("cifar10_jpeg_train", "cifar10_jpeg_test"),
}


@dataclass(frozen=True)
class Assets:
    """The directory: `model_defs.py`, weights and image tars."""

    root: Path
    definitions: ModuleType

    @classmethod
    def open(cls, root: Path) -> Assets:
        """Load `model_defs.py` from the directory."""
        path = root / "model_defs.py"
        if not path.is_file():
            sys.exit(f"{path} not found: pass --assets or set FXQUANT_ASSETS")
        spec = importlib.util.spec_from_file_location("model_defs", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return cls(root, module)

    def model(self, name: str) -> torch.nn.Module:
        """A pretrained network in inference mode."""
        return self.definitions.load(name, str(self.root)).eval()

    def images(self, name: str, train: bool, limit: int | None) -> tuple[Tensor, Tensor]:
        """Preprocessed images `[N, 3, H, W]` and labels `[N]` for a net."""
        archive = _SETS[self.definitions.ZOO[name][2]][0 if train else 1]
        with tarfile.open(self.root / "images" / f"{archive}.tar") as tar:

            def read(member: str) -> bytes:
                file = tar.extractfile(member)
                assert file is not None
                return file.read()

            rows = spread(list(csv.DictReader(io.StringIO(read("labels.csv").decode()))), limit)
            pixels = np.stack(
                [np.asarray(Image.open(io.BytesIO(read(r["file"]))).convert("RGB")) for r in rows]
            )
        labels = torch.tensor([int(r["label"]) for r in rows])
        return self.definitions.preprocess(pixels, name), labels


def pixels(name: str) -> int:
    """Of the images of a net."""
    side = 32 if name.startswith("cifar10") else 224
    return side * side


def spread(rows: list[dict], limit: int | None) -> list[dict]:
    """At most `limit` rows, evenly spaced: the files are sorted by class."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]
