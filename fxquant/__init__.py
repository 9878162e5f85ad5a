"""fxquant: post-training quantization of CNNs, from torch.fx to bit-exact integer kernels.

prepared = fxquant.prepare(model, example_inputs, config=fxquant.W8A8)
fxquant.calibrate(prepared, loader)
quantized = fxquant.convert(prepared)
"""

import logging

from fxquant import errors, recipes, solvers, targets
from fxquant.api import Prepared, calibrate, convert, prepare, quantize
from fxquant.config import (
    W2A4,
    W2A8,
    W3A3,
    W3A8,
    W4A4,
    W4A8,
    W6A6,
    W7A7,
    W8A8,
    Config,
    OpConfig,
    preset,
)
from fxquant.errors import FxQuantError
from fxquant.inspection import inspect
from fxquant.model import FloatIsland, Quantized
from fxquant.numerics.ranges import Entropy, MinMax, MovingAverage, Mse, Percentile
from fxquant.storage import load
from fxquant.version import __version__

logging.getLogger("fxquant").addHandler(logging.NullHandler())

__all__ = [
    "W2A4",
    "W2A8",
    "W3A3",
    "W3A8",
    "W4A4",
    "W4A8",
    "W6A6",
    "W7A7",
    "W8A8",
    "Config",
    "Entropy",
    "FloatIsland",
    "FxQuantError",
    "MinMax",
    "MovingAverage",
    "Mse",
    "OpConfig",
    "Percentile",
    "Prepared",
    "Quantized",
    "__version__",
    "calibrate",
    "convert",
    "errors",
    "inspect",
    "load",
    "prepare",
    "preset",
    "quantize",
    "recipes",
    "solvers",
    "targets",
]
