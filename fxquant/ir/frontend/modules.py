"""torch.nn modules as calls of their functional form: `MODULES[type](module) -> Functional`.

One row a module type. Parameters are named, so that the normalizer can lift them to get_attr. What
a module is called with besides its input follows the module: `MODULES[type](module, x, *more)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Make = Callable[..., "Functional"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """Name of a parameter or buffer of the module, `None` where the module has none."""

    name: str


@dataclass(frozen=True, slots=True)
class Functional:
    """A call that replaces the module's: `function(x, *args, **kwargs)`."""

    function: Callable[..., Any] | str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    before: Functional | None = None  # applied to x first (padding modes)


_W, _B = Parameter("weight"), Parameter("bias")


def _padded(m: Any, dims: int) -> Functional | None:
    """Non-zero padding modes become a pad in front."""
    if m.padding_mode == "zeros":
        return None
    return Functional(F.pad, (tuple(m._reversed_padding_repeated_twice), m.padding_mode))


def _conv(function: Callable[..., Any], dims: int) -> Make:
    def make(m: Any) -> Functional:
        before = _padded(m, dims)
        padding = m.padding if before is None else 0
        args = (_W, _B, m.stride, padding, m.dilation, m.groups)
        return Functional(function, args, before=before)

    return make


def _conv_transpose(function: Callable[..., Any]) -> Make:
    def make(m: Any, x: Tensor | None = None, output_size: Any = None) -> Functional:
        padding = m._output_padding(
            x, output_size, m.stride, m.padding, m.kernel_size, len(m.kernel_size), m.dilation
        )
        args = (_W, _B, m.stride, m.padding, padding, m.groups, m.dilation)
        return Functional(function, args)

    return make


def _batch_norm(m: Any) -> Functional:
    batch = m.running_mean is None and m.running_var is None
    args = (Parameter("running_mean"), Parameter("running_var"), _W, _B, batch, 0.0, m.eps)
    return Functional(F.batch_norm, args)


def _avg_pool(function: Callable[..., Any]) -> Make:
    def make(m: Any) -> Functional:
        args = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
        divisor = getattr(m, "divisor_override", None)
        return Functional(function, args if divisor is None else (*args, divisor))

    return make


def _upsample(m: Any) -> Functional:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    return Functional(F.interpolate, kwargs={n: getattr(m, n) for n in names})


def _plain(function: Callable[..., Any] | str, *names: str) -> Make:
    """A module whose functional form takes the named attributes in order."""
    return lambda m: Functional(function, tuple(getattr(m, n) for n in names))


def _max_pool(function: Callable[..., Any]) -> Make:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return _plain(function, *names)


_dropout = _plain("identity")

MODULES: dict[type[nn.Module], Make] = {
    nn.Conv1d: _conv(F.conv1d, 1),
    nn.Conv2d: _conv(F.conv2d, 2),
    nn.ConvTranspose1d: _conv_transpose(F.conv_transpose1d),
    nn.ConvTranspose2d: _conv_transpose(F.conv_transpose2d),
    nn.Linear: lambda m: Functional(F.linear, (_W, _B)),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _plain(F.relu),
    nn.ReLU6: _plain(F.relu6),
    nn.Hardtanh: _plain(F.hardtanh, "min_val", "max_val"),
    nn.LeakyReLU: _plain(F.leaky_relu, "negative_slope"),
    nn.PReLU: lambda m: Functional(F.prelu, (_W,)),
    nn.ELU: _plain(F.elu, "alpha"),
    nn.SELU: _plain(F.selu),
    nn.Hardswish: _plain(F.hardswish),
    nn.SiLU: _plain(F.silu),
    nn.Mish: _plain(F.mish),
    nn.Softplus: _plain(F.softplus, "beta", "threshold"),
    nn.LogSigmoid: _plain(F.logsigmoid),
    nn.Sigmoid: _plain(torch.sigmoid),
    nn.Hardsigmoid: _plain(F.hardsigmoid),
    nn.Tanh: _plain(torch.tanh),
    nn.GELU: lambda m: Functional(F.gelu, kwargs={"approximate": m.approximate}),
    nn.MaxPool1d: _max_pool(F.max_pool1d),
    nn.MaxPool2d: _max_pool(F.max_pool2d),
    nn.AvgPool1d: _avg_pool(F.avg_pool1d),
    nn.AvgPool2d: _avg_pool(F.avg_pool2d),
    nn.AdaptiveAvgPool1d: _plain(F.adaptive_avg_pool1d, "output_size"),
    nn.AdaptiveAvgPool2d: _plain(F.adaptive_avg_pool2d, "output_size"),
    nn.AdaptiveMaxPool2d: _plain(F.adaptive_max_pool2d, "output_size", "return_indices"),
    nn.LocalResponseNorm: _plain(F.local_response_norm, "size", "alpha", "beta", "k"),
    nn.Flatten: _plain(torch.flatten, "start_dim", "end_dim"),
    nn.Unflatten: _plain(torch.unflatten, "dim", "unflattened_size"),
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.AlphaDropout: _dropout,
    nn.Identity: _dropout,
    nn.ZeroPad2d: _plain(F.pad, "padding"),
    nn.ConstantPad1d: lambda m: Functional(F.pad, (m.padding, "constant", m.value)),
    nn.ConstantPad2d: lambda m: Functional(F.pad, (m.padding, "constant", m.value)),
    nn.ReflectionPad2d: lambda m: Functional(F.pad, (m.padding, "reflect")),
    nn.ReplicationPad2d: lambda m: Functional(F.pad, (m.padding, "replicate")),
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.PixelShuffle: _plain(F.pixel_shuffle, "upscale_factor"),
    nn.ChannelShuffle: _plain(F.channel_shuffle, "groups"),
    nn.Softmax: _plain(F.softmax, "dim"),
    nn.LayerNorm: lambda m: Functional(F.layer_norm, (m.normalized_shape, _W, _B, m.eps)),
    nn.GroupNorm: lambda m: Functional(F.group_norm, (m.num_groups, _W, _B, m.eps)),
}
