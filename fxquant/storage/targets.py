"""Names of the functions a file may call. Only what is listed here is ever resolved."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fxquant.errors import FileFormatError, UnsupportedError
from fxquant.ops import OPS

_DIALECT = {function.__name__: function for function in OPS}

# Pure tensor functions of float islands, as functions, methods or aten overloads.
_FLOAT_NAMES = frozenset(
    """abs adaptive_max_pool2d adaptive_max_pool2d_with_indices add addmm amax amin argmax argmin
    avg_pool2d baddbmm batch_norm bmm cat chunk clamp clone contiguous conv2d cos cumsum div einsum
    elu embedding eq erf exp expand expand_as flatten flip floor gather ge gelu getitem group_norm
    gt index_select instance_norm interpolate layer_norm le lerp linalg_vector_norm linear
    local_response_norm log log_softmax lt masked_fill matmul max max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_unpool1d max_unpool2d maximum
    mean min minimum mul narrow native_group_norm native_layer_norm ne neg norm normalize ones_like
    pad permute pow prod reciprocal relu repeat repeat_interleave reshape rms_norm roll round rsqrt
    rsub scaled_dot_product_attention select sigmoid sign sin slice softmax softmin split
    split_with_sizes sqrt square squeeze stack std sub sum tanh tile to transpose truediv type_as
    unbind unflatten unsqueeze upsample_bicubic2d var var_mean view where zeros_like
    """.split()
)
_MODULES = {"torch": torch, "functional": F, "operator": operator}


def name_of(target: Any, op: str, where: str) -> str:
    """The stored name of a node's target.

    Raises:
        UnsupportedError: The function is not one that files may name.
    """
    if op == "call_method" and target in _FLOAT_NAMES:
        return f"method:{target}"
    if target in OPS:
        return f"op:{target.__name__}"
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        base, overload = target._schema.name.split("::")[1], target._overloadname
        if base in _FLOAT_NAMES:
            return f"aten:{base}.{overload}"
    short = getattr(target, "__name__", "")
    if short in _FLOAT_NAMES:
        for prefix, module in _MODULES.items():
            if getattr(module, short, None) is target:
                return f"{prefix}:{short}"
    raise UnsupportedError(
        f"operator {short or target} cannot be stored in a file",
        where=where,
        why="files name only known, side-effect free tensor functions",
        remedy="express it with torch functions, or keep the Quantized object in memory",
    )


def resolve(name: Any) -> tuple[str, Callable[..., Any] | str]:
    """Node kind and target of a stored name.

    Raises:
        FileFormatError: The name is not one that files may use.
    """
    if isinstance(name, str) and ":" in name:
        prefix, short = name.split(":", 1)
        base = short.split(".")[0]
        if prefix == "op" and short in _DIALECT:
            return "call_function", _DIALECT[short]
        if prefix == "method" and short in _FLOAT_NAMES:
            return "call_method", short
        if prefix in _MODULES and short in _FLOAT_NAMES and hasattr(_MODULES[prefix], short):
            return "call_function", getattr(_MODULES[prefix], short)
        if prefix == "aten" and base in _FLOAT_NAMES:
            packet = getattr(torch.ops.aten, base, None)
            overload = getattr(packet, short.removeprefix(f"{base}."), None)
            if isinstance(overload, torch._ops.OpOverload):
                return "call_function", overload
    raise FileFormatError(
        f"the file names an unknown operator {name!r}",
        why="it is corrupt, or written by another version",
        remedy="quantize and save the model again with this version",
    )
