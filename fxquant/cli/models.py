"""Where models come from: Python code, `.pt2`, ONNX; and quantized networks from `.fxq`."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxquant.cli.archives import check_archive
from fxquant.cli.data import Batches
from fxquant.errors import CaptureError, ConfigError, FileFormatError
from fxquant.model import Quantized
from fxquant.onnx import import_onnx
from fxquant.storage import load

HELP = "`package.module:factory`, an .pt2 ExportedProgram, or an .onnx model"
_LARGEST_INPUT = 1 << 28  # elements


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A float model.

    Attributes:
        model: What `fxquant.prepare` takes.
        shapes: Shapes of its inputs where it tells them, None for open sizes.
    """

    model: Any
    shapes: tuple[tuple[int | None, ...], ...] = ()

    def example(self, data: Batches) -> tuple[Tensor, ...]:
        """Example inputs out of data: as many samples as the model's batch, or one.

        Raises:
            ConfigError: There are too few samples.
        """
        count = (self.shapes[0][0] or 1) if self.shapes and self.shapes[0] else 1
        batch = next(iter(data))
        if len(batch[0]) < count:
            raise ConfigError(
                f"the model takes batches of {count}, the data has batches of {len(batch[0])}",
                remedy=f"pass --batch {count} and as many samples",
            )
        return tuple(x[:count] for x in batch)

    def zeros(self, given: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """Example inputs of the model's own shapes, or of given ones.

        Raises:
            ConfigError: The shape is not known, or absurd.
        """
        shapes = given or self.shapes
        sizes = [tuple(d for d in s if d is not None) for s in shapes]
        if not shapes or any(len(a) != len(b) for a, b in zip(sizes, shapes, strict=True)):
            raise ConfigError(
                "the shape of the model's input is not known",
                remedy="pass --shape 1,3,224,224, once for each input",
            )
        if any(math.prod(s) > _LARGEST_INPUT for s in sizes):
            raise ConfigError(f"inputs of shape {sizes} are too large")
        return tuple(torch.zeros(s) for s in sizes)


def read_model(text: str) -> Source:
    """A float model from its description; see `HELP`.

    Raises:
        ConfigError: The description makes no sense, or the Python code failed.
        FileFormatError: The file is missing or damaged.
    """
    match Path(text).suffix:
        case ".pt2":
            return _exported(Path(text))
        case ".onnx":
            network = import_onnx(text)
            return Source(network.module, tuple(network.inputs.values()))
    module, colon, attribute = text.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"{text!r} is no model", remedy=f"pass {HELP.replace('`', '')}")
    return _from_python(text, module, attribute)


def _exported(path: Path) -> Source:
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file", remedy="check the path")
    check_archive(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises whatever its parts raise
        raise FileFormatError(
            f"cannot read the program: {type(error).__name__}: {str(error).strip()[:300]}",
            where=str(path),
            why="it is no ExportedProgram, damaged, or of another version of torch",
            remedy="write it with torch.export.save",
        ) from error
    return Source(program, _shapes(program))


def _shapes(program: ExportedProgram) -> tuple[tuple[int | None, ...], ...]:
    names = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.name in names]
    shapes = [v.shape for v in values if isinstance(v, Tensor)]
    return tuple(tuple(d if isinstance(d, int) else None for d in s) for s in shapes)


def _from_python(text: str, module: str, attribute: str) -> Source:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
        if not isinstance(value, nn.Module | ExportedProgram):
            value = value()
    except Exception as error:  # user code raises what it likes
        raise ConfigError(
            f"{text} cannot be called: {type(error).__name__}: {str(error)[:300]}",
            why="the module must be importable from here, and the factory needs no arguments",
            remedy="fix it, or write a function without arguments that returns the model",
        ) from error
    if not isinstance(value, nn.Module | ExportedProgram):
        raise CaptureError(
            f"{text} returned a {type(value).__name__}", remedy="return the nn.Module"
        )
    return Source(value, _shapes(value) if isinstance(value, ExportedProgram) else ())


def read_quantized(path: str) -> Quantized:
    """A quantized network.

    Raises:
        FileFormatError: The file is missing or damaged.
        ConfigError: It is not an `.fxq` file.
    """
    if not path.endswith(".fxq"):
        raise ConfigError(
            f"{path} is no .fxq file", remedy="make one with fxquant quantize ... --output x.fxq"
        )
    return load(path)
