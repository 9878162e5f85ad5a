"""ONNX operator -> its importer: one row an operator, one file a family."""

from __future__ import annotations

from fxquant.onnx import import_functions, import_layers, import_shapes
from fxquant.onnx.reader import Importer

IMPORTERS: dict[str, Importer] = {
    **import_layers.IMPORTERS,
    **import_functions.IMPORTERS,
    **import_shapes.IMPORTERS,
}
