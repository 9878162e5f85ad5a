"""Integer reference operators: the definition every kernel must equal bit for bit.

Activations are uint8 or uint16 codes in torch's axis order (`[N, C, H, W]`); arithmetic runs in
int64, matrix products in float64, which is exact below 2^53. An INTEGER graph is an fx graph
whose nodes call these functions, so running that graph IS the reference interpreter.
"""

from fxquant.numerics.reference.boundary import dequantize, dequantize_accumulator, quantize
from fxquant.numerics.reference.conv import (
    conv2d,
    conv2d_accumulate,
    conv_transpose2d,
    conv_transpose2d_accumulate,
    linear,
    linear_accumulate,
)
from fxquant.numerics.reference.elementwise import (
    add,
    concat,
    local_response_norm,
    lookup,
    mul,
    requantize,
)
from fxquant.numerics.reference.pool import (
    avg_pool2d,
    avg_pool2d_accumulate,
    max_pool2d,
    resize_linear2d,
)
from fxquant.numerics.reference.shape import (
    channel_shuffle,
    gather2d,
    pad,
    permute,
    reshape,
    slice_axis,
)

__all__ = [
    "add",
    "avg_pool2d",
    "avg_pool2d_accumulate",
    "channel_shuffle",
    "concat",
    "conv2d",
    "conv2d_accumulate",
    "conv_transpose2d",
    "conv_transpose2d_accumulate",
    "dequantize",
    "dequantize_accumulator",
    "gather2d",
    "linear",
    "linear_accumulate",
    "local_response_norm",
    "lookup",
    "max_pool2d",
    "mul",
    "pad",
    "permute",
    "quantize",
    "requantize",
    "reshape",
    "resize_linear2d",
    "slice_axis",
]
