"""Modules become the functions they stand for, with every argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.ir.frontend import modules
from fxquant.ops import OPS
from tests.graphs import check_frontend, check_same_floats, normalized

IMAGE = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(5))

MODULES = {
    "conv_reflect": nn.Conv2d(4, 5, 3, padding=(1, 2), padding_mode="reflect"),
    "conv_replicate": nn.Conv2d(4, 5, 3, padding=1, padding_mode="replicate"),
    "conv_same": nn.Conv2d(4, 5, (2, 3), padding="same"),
    "transposed": nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 1), groups=2, dilation=2),
    "flatten": nn.Flatten(),
    "unflatten": nn.Unflatten(1, (2, 2)),
    "zero_pad": nn.ZeroPad2d((1, 0, 2, 1)),
    "constant_pad": nn.ConstantPad2d(1, 0.5),
    "reflection_pad": nn.ReflectionPad2d(2),
    "replication_pad": nn.ReplicationPad2d((1, 2, 3, 0)),
    "upsample": nn.Upsample(size=(4, 11), mode="bilinear", align_corners=True),
    "upsample_recompute": nn.Upsample(scale_factor=1.3, recompute_scale_factor=True),
    "upsample_recompute_bilinear": nn.Upsample(
        scale_factor=1.3, mode="bilinear", recompute_scale_factor=True
    ),
    "upsample_nearest": nn.UpsamplingNearest2d(scale_factor=3),
    "upsample_bilinear": nn.UpsamplingBilinear2d(scale_factor=2),
    "pixel_shuffle": nn.PixelShuffle(2),
    "channel_shuffle": nn.ChannelShuffle(4),
    "adaptive_max": nn.AdaptiveMaxPool2d((2, 3)),
    "avg": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "max": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "dropout": nn.Dropout2d(0.5),
    "lrn": nn.LocalResponseNorm(3, alpha=0.3),
    "batch_norm": nn.BatchNorm2d(4, affine=False),
    **{a.__name__.lower(): a() for a in (
        nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.Hardswish,
        nn.SiLU, nn.Mish, nn.Softplus, nn.LogSigmoid, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.GELU,
    )},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    model = nn.Sequential(MODULES[name]).eval()
    gm = normalized(model, IMAGE)
    check_same_floats(gm, model, [IMAGE])
    assert all(n.target in OPS or n.target.__name__ == "batch_norm"
               for n in gm.graph.nodes if n.op.startswith("call_"))  # fmt: skip


# Arguments of modules that their parameters show, or that change nothing in inference.
NOT_READ = {"in_channels", "out_channels", "in_features", "out_features", "num_features", "bias",
            "num_channels", "num_parameters", "init", "affine", "elementwise_affine", "momentum",
            "device", "dtype", "inplace", "p", "min_value", "max_value"}  # fmt: skip
SHOWN_BY = {"kernel_size": "weight", "track_running_stats": "running_mean",
            "padding_mode": "output_padding"}  # transposed convolutions have no other  # fmt: skip


@pytest.mark.parametrize("kind", modules.MODULES)
def test_every_argument_of_a_module_is_read(kind: type[nn.Module]) -> None:
    """A functional form that misses one computes something else without a word."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    arguments = [p for p in inspect.signature(kind).parameters.values() if p.kind in named]
    required = {p.name: 1 for p in arguments if p.default is p.empty}
    if kind is nn.Unflatten:
        required["unflattened_size"] = (1, 1)
    module, read = kind(**required), set()

    class Reading:
        def __getattr__(self, name: str) -> Any:
            read.add(name.lstrip("_"))
            return getattr(module, name)

    form = modules.MODULES[kind](Reading())
    read |= {a.name for a in form.args if isinstance(a, modules.Parameter)}
    expected = {p.name for p in arguments} - NOT_READ
    assert not {a for a in expected if a not in read and SHOWN_BY.get(a) not in read}


class Calls(nn.Module):
    """A layer called in a way of its own."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.layer, x)


TRANSPOSED = nn.ConvTranspose2d(4, 5, 3, 2, 1)
ROW = nn.ConvTranspose1d(4, 5, 3, 2, 1)
CALLS = {
    "input": Calls(nn.Conv2d(4, 5, 3), lambda m, x: m(input=x)),
    "output_size": Calls(TRANSPOSED, lambda m, x: m(x, output_size=(18, 13))),
    "output_size_whole": Calls(TRANSPOSED, lambda m, x: m(x, (*x.size()[:2], 18, 14))),
    "output_size_row": Calls(ROW, lambda m, x: m(x.flatten(2), output_size=[126])),
}


@pytest.mark.parametrize("name", CALLS)
def test_ways_to_call_a_module(name: str) -> None:
    gm = check_frontend(CALLS[name].eval(), [IMAGE])
    assert all(n.target in OPS for n in gm.graph.nodes if n.op.startswith("call_"))
