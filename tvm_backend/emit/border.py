"""What a quantize or dequantize node says about its codes, for callers that use these directly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fxquant.numerics import reference
from tvm_backend.call import Call
from tvm_backend.layout import code_width
from tvm_backend.program import FloatBorder


def float_border(call: Call, function: Any) -> FloatBorder | None:
    """The relation of codes to floats, None for nodes that do not cross between them.

    Args:
        call: The node.
        function: The reference operator it calls.
    """
    numbers = call.numbers
    match function:
        case reference.quantize:
            bounds = numbers["qmin"], numbers["qmax"]
            return FloatBorder(_scalar(call), zero_point=numbers["zero_point"], bounds=bounds)
        case reference.dequantize:
            bounds = 0, (1 << code_width(call.inputs[0].storage.dtype).bits) - 1
            return FloatBorder(_scalar(call), zero_point=numbers["zero_point"], bounds=bounds)
        case reference.dequantize_accumulator:
            scale = np.ascontiguousarray(call.tensors["scale"], np.float32).reshape(-1)
            shape = call.inputs[0].shape
            stride = math.prod(shape[numbers["axis"] % len(shape) + 1 :]) if scale.size > 1 else 1
            clamped = numbers["lower"] is not None or numbers["upper"] is not None
            return FloatBorder(scale, stride, clamped=clamped)
        case _:
            return None


def _scalar(call: Call) -> np.ndarray:
    return np.asarray([call.numbers["scale"]], np.float32)
