"""Which emitter makes the kernels of which reference operator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from fxquant.numerics import reference
from tvm_backend.call import Emitter
from tvm_backend.emit.avg_pool import avg_pool2d, avg_pool2d_accumulate
from tvm_backend.emit.concat import concat
from tvm_backend.emit.contraction import (
    conv2d,
    conv2d_accumulate,
    conv_transpose2d,
    conv_transpose2d_accumulate,
    linear,
    linear_accumulate,
)
from tvm_backend.emit.dequantize import dequantize, dequantize_accumulator
from tvm_backend.emit.elementwise import add, mul, requantize
from tvm_backend.emit.float_arithmetic import float_arithmetic
from tvm_backend.emit.local_response_norm import local_response_norm
from tvm_backend.emit.lookup import lookup
from tvm_backend.emit.max_pool import max_pool2d
from tvm_backend.emit.quantize import quantize
from tvm_backend.emit.resize import resize_linear2d
from tvm_backend.emit.shape import channel_shuffle, gather2d, pad, permute, reshape, slice_axis

EMIT: dict[Callable[..., Any], Emitter] = {
    reference.add: add,
    reference.avg_pool2d: avg_pool2d,
    reference.avg_pool2d_accumulate: avg_pool2d_accumulate,
    reference.channel_shuffle: channel_shuffle,
    reference.concat: concat,
    reference.conv2d: conv2d,
    reference.conv2d_accumulate: conv2d_accumulate,
    reference.conv_transpose2d: conv_transpose2d,
    reference.conv_transpose2d_accumulate: conv_transpose2d_accumulate,
    reference.dequantize: dequantize,
    reference.dequantize_accumulator: dequantize_accumulator,
    reference.gather2d: gather2d,
    reference.linear: linear,
    reference.linear_accumulate: linear_accumulate,
    reference.local_response_norm: local_response_norm,
    reference.lookup: lookup,
    reference.max_pool2d: max_pool2d,
    reference.mul: mul,
    reference.pad: pad,
    reference.permute: permute,
    reference.quantize: quantize,
    reference.requantize: requantize,
    reference.reshape: reshape,
    reference.resize_linear2d: resize_linear2d,
    reference.slice_axis: slice_axis,
}

# Float arithmetic with a constant, see `tvm_backend/arithmetic.py`.
ARITHMETIC: dict[Callable[..., Any], Emitter] = {
    function: partial(float_arithmetic, function)
    for function in (operator.add, operator.sub, operator.mul, operator.truediv)
}

KERNELS: dict[Callable[..., Any], Emitter] = {**EMIT, **ARITHMETIC}

# Deliver accumulators, which are int64 where they sum 16-bit codes.
ACCUMULATES = (
    reference.avg_pool2d_accumulate,
    reference.conv2d_accumulate,
    reference.conv_transpose2d_accumulate,
    reference.linear_accumulate,
)

# Move elements without computing: they may be views.
MOVES = (
    reference.reshape,
    reference.permute,
    reference.slice_axis,
    reference.channel_shuffle,
    reference.gather2d,
    reference.pad,
)

# Kernels for values that are float32 before and after.
FLOATS = (*MOVES, reference.max_pool2d)
