"""ONNX in and out. Needs the optional package `onnx`; `import fxquant` does not load it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.model import Quantized

if TYPE_CHECKING:
    from fxquant.onnx.reader import OnnxNetwork


def export_onnx(
    quantized: Quantized, path: str | Path, sample: Tensor | tuple[Tensor, ...] | None = None
) -> Path:
    """Write a network as an ONNX model in QDQ form; see `export.py`.

    Args:
        quantized: From `fxquant.convert`.
        path: The file to write; missing folders are made.
        sample: As in `qdq_model`.

    Returns:
        The path written.

    Raises:
        ConfigError: `onnx` is not installed, or the sample does not fit the network.
        UnsupportedError: Operators without an ONNX form; the message names all of them.
    """
    destination = Path(path)
    model = qdq_model(quantized, sample)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(model)
    return destination


def qdq_model(quantized: Quantized, sample: Tensor | tuple[Tensor, ...] | None = None) -> bytes:
    """The serialized ONNX model in QDQ form.

    Args:
        quantized: From `fxquant.convert`.
        sample: A batch of every input, or of the only one. It shows the range of convolutions
            before their residual sum, which is then quantized too, as ONNX Runtime's integer
            kernels need it. None leaves the sum in the accumulators, as our kernels compute it.

    Raises:
        ConfigError: As in `export_onnx`.
        UnsupportedError: As in `export_onnx`.
    """
    _require()
    from fxquant.onnx.export import build

    return build(quantized, sample)


def import_onnx(path: str | Path) -> OnnxNetwork:
    """Read a float ONNX model as a torch module; see `reader.py`.

    Raises:
        ConfigError: `onnx` is not installed.
        FileFormatError: The file is missing, damaged or no ONNX model.
        UnsupportedError: Operators that cannot be imported; the message names all of them.
    """
    _require()
    from fxquant.onnx.reader import read

    return read(Path(path))


def _require() -> None:
    if find_spec("onnx") is None:
        raise ConfigError(
            "ONNX models need the package onnx",
            why="it is not installed",
            remedy='pip install "fxquant[onnx]"',
        )


__all__ = ["export_onnx", "import_onnx", "qdq_model"]
