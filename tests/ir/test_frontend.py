"""Captured and normalized graphs compute what the model computes, however it is written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import symbolic_trace

from fxquant.errors import CaptureError
from fxquant.ops import OPS
from fxquant.ops.normalization import batch_norm
from tests.graphs import check_frontend, check_same_floats, fused, normalized, ops_of
from tests.zoo import ZOO, Head, ZooModel, conv_bn, standardized

IMAGE = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_zoo_model_equals_its_graph(entry: ZooModel) -> None:
    check_frontend(entry.make(), entry.inputs())


# torch.export itself takes local_response_norm apart, which leaves a float island.
DECOMPOSED_BY_EXPORT = {"lrn"}


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_exported_program_equals_its_graph(entry: ZooModel) -> None:
    """The aten dialect of torch.export ends in the same operators."""
    model, inputs = entry.make(), entry.inputs()
    program = torch.export.export(model, inputs)
    check_same_floats(fused(program, *inputs), model, inputs, 5e-5)
    if entry.name not in DECOMPOSED_BY_EXPORT:
        assert sorted(ops_of(fused(program, *inputs))) == sorted(ops_of(fused(model, *inputs)))


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_traced_graph_module_equals_its_graph(entry: ZooModel) -> None:
    model, inputs = entry.make(), entry.inputs()
    check_same_floats(normalized(symbolic_trace(model), *inputs), model, inputs)


class Function(nn.Module):
    """A plain function with a few parameters at hand."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3) * 0.3)
        self.line = nn.Parameter(torch.randn(6, 4, 3) * 0.3)
        self.matrix = nn.Parameter(torch.randn(5, 7))
        self.bias = nn.Parameter(torch.randn(6))
        self.channel = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


# name: (function, operators it becomes; None = anything, but no float island)
STYLES: dict[str, tuple[Callable[..., Tensor], list[str] | None]] = {
    # flattening
    "torch_flatten": (lambda m, x: torch.flatten(x, 1), ["reshape"]),
    "method_flatten": (lambda m, x: x.flatten(start_dim=1), ["reshape"]),
    "view_size": (lambda m, x: x.view(x.size(0), -1), ["reshape"]),
    "view_shape": (lambda m, x: x.view(x.shape[0], x.shape[1] * x.shape[2], -1), ["reshape"]),
    "reshape_tuple": (lambda m, x: x.reshape((x.size()[0], 4, 63)), ["reshape"]),
    "unsqueeze": (lambda m, x: x.unsqueeze(1).squeeze(1), ["reshape"] * 2),
    # global pooling
    "mean_dims": (lambda m, x: x.mean((2, 3)), ["avg_pool2d", "reshape"]),
    "mean_negative": (lambda m, x: x.mean([-1, -2], keepdim=True), ["avg_pool2d"]),
    "mean_keyword": (lambda m, x: torch.mean(x, dim=(2, 3)), ["avg_pool2d", "reshape"]),
    "mean_axis": (lambda m, x: x.mean(axis=(2, 3), keepdims=True), ["avg_pool2d"]),
    "amax": (lambda m, x: x.amax((-1, 2)), ["max_pool2d", "reshape"]),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)), ["avg_pool2d"]),
    "adaptive_none": (lambda m, x: F.adaptive_avg_pool2d(x, (None, 3)), ["avg_pool2d"]),
    "adaptive_max": (lambda m, x: F.adaptive_max_pool2d(x, 3), ["max_pool2d"]),
    "avg_whole": (lambda m, x: F.avg_pool2d(x, x.shape[2:]), ["avg_pool2d"]),
    # pooling
    "max": (lambda m, x: F.max_pool2d(x, 3, 2, 1), ["max_pool2d"]),
    "max_keywords": (lambda m, x: F.max_pool2d(x, kernel_size=2, dilation=2), ["max_pool2d"]),
    "max_ceil": (lambda m, x: F.max_pool2d(x, 2, ceil_mode=True), ["max_pool2d"]),
    "max_torch": (lambda m, x: torch.max_pool2d(x, 2), ["max_pool2d"]),
    "avg_pad": (lambda m, x: F.avg_pool2d(x, 3, 2, 1), ["avg_pool2d"]),
    "avg_exclude": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ["avg_pool2d"]),
    "avg_ceil": (lambda m, x: F.avg_pool2d(x, (2, 3), 2, 1, True), ["avg_pool2d"]),
    "avg_divisor": (lambda m, x: F.avg_pool2d(x, 2, divisor_override=3), ["avg_pool2d"]),
    # slicing and joining
    "slice": (lambda m, x: x[:, 1:3, ::2], ["slice_axis", "slice_axis"]),
    "slice_negative": (lambda m, x: x[:, :, -4:-1], ["slice_axis"]),
    "slice_ellipsis": (lambda m, x: x[..., 1:], ["slice_axis"]),
    "index": (lambda m, x: x[:, 2], ["slice_axis", "reshape"]),
    "index_negative": (lambda m, x: x[:, -1, None], ["slice_axis"]),
    "narrow": (lambda m, x: x.narrow(1, 1, 2), ["slice_axis"]),
    "narrow_negative": (lambda m, x: x.narrow(1, -2, 2), ["slice_axis"]),
    "select": (lambda m, x: x.select(2, -1), ["slice_axis", "reshape"]),
    "chunk_cat": (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), None),
    "split_cat": (lambda m, x: torch.cat(torch.split(x, [1, 3], dim=1), dim=-3), None),
    "split_uneven": (lambda m, x: torch.cat(x.split(3, 1), 1), None),
    "unpack": (lambda m, x: operator.add(*x.chunk(2, dim=1)), None),
    "cat_width": (lambda m, x: torch.cat([x, x], dim=3), ["concat"]),
    "cat_axis": (lambda m, x: torch.cat([x, x], axis=1), ["concat"]),
    "chunk_axis": (lambda m, x: torch.chunk(x, 2, axis=1)[0], ["slice_axis"]),
    # padding
    "pad": (lambda m, x: F.pad(x, (1, 2, 0, 1)), ["pad"]),
    "pad_channels": (lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1), "constant", 0.0), ["pad"]),
    "pad_crop": (lambda m, x: F.pad(x, (-1, 0, 2, -2)), ["pad"]),
    "pad_reflect": (lambda m, x: F.pad(x, (2, 1, 0, 3), mode="reflect"), ["gather2d"]),
    "pad_replicate": (lambda m, x: F.pad(x, [1, 1, 2, 0], "replicate"), ["gather2d"]),
    # moving
    "permute": (lambda m, x: x.permute(0, 2, 3, 1), ["permute"]),
    "permute_list": (lambda m, x: torch.permute(x, [0, -1, 1, 2]), ["permute"]),
    "transpose": (lambda m, x: x.transpose(-1, -2), ["permute"]),
    "channel_shuffle": (lambda m, x: F.channel_shuffle(x, 2), ["channel_shuffle"]),
    "pixel_shuffle": (lambda m, x: F.pixel_shuffle(x, 2), ["reshape", "permute", "reshape"]),
    # resizing
    "nearest": (lambda m, x: F.interpolate(x, scale_factor=2), ["gather2d"]),
    "nearest_size": (lambda m, x: F.interpolate(x, size=(13, 5)), ["gather2d"]),
    "nearest_uneven": (lambda m, x: F.interpolate(x, scale_factor=(1.7, 0.6)), ["gather2d"]),
    "bilinear": (lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
                 ["resize_linear2d"]),
    "bilinear_align": (lambda m, x: F.interpolate(x, (5, 20), mode="bilinear", align_corners=True),
                       ["resize_linear2d"]),
    # arithmetic
    "add_method": (lambda m, x: x.add(x.neg()), ["affine", "add"]),
    "add_inplace": (lambda m, x: x.relu().add_(x), ["clamp", "add"]),
    "iadd": (lambda m, x: operator.iadd(x.relu(), x), ["clamp", "add"]),
    "add_numpy": (lambda m, x: torch.add(x1=x, x2=x), ["add"]),
    "add_scalar": (lambda m, x: 2 + x, ["affine"]),
    "add_alpha": (lambda m, x: torch.add(x, 3, alpha=2), ["affine"]),
    "rsub": (lambda m, x: 1.5 - x, ["affine"]),
    "add_alpha_value": (lambda m, x: torch.add(x, x.relu(), alpha=0.5), ["clamp", "affine", "add"]),
    "sub": (lambda m, x: x.relu() - x, ["clamp", "affine", "add"]),
    "sub_alpha": (lambda m, x: torch.sub(x, x.abs(), alpha=2), ["abs", "affine", "add"]),
    "rsub_value": (lambda m, x: torch.rsub(x, x.abs(), alpha=3), ["abs", "affine", "add"]),
    "isub": (lambda m, x: operator.isub(x.relu(), x), ["clamp", "affine", "add"]),
    # constants: of one element, and one number a channel
    "element": (lambda m, x: m.channel[1] * x + m.bias[:1] - m.channel.sum(), ["affine"] * 3),
    "fusion_weights": (lambda m, x: weighted(F.relu(m.bias), x, x.abs()), None),
    "channel_scale": (lambda m, x: m.channel[:, None, None] * x.abs(), ["abs", "batch_norm"]),
    "channel_offset": (lambda m, x: x.abs() + m.channel.view(1, 4, 1, 1), ["abs", "batch_norm"]),
    "channel_sub": (lambda m, x: m.channel[:, None, None] - x.abs(), ["abs", "batch_norm"]),
    "channel_div": (lambda m, x: x.abs() / m.channel[:, None, None], ["abs", "batch_norm"]),
    # one pixel for the whole plane
    "expand_as": (lambda m, x: x * x.mean((2, 3), True).expand_as(x),
                  ["avg_pool2d", "gather2d", "mul"]),
    "expand_nothing": (lambda m, x: x.expand(-1, -1, 9, 7) + x, ["add"]),
    "scale": (lambda m, x: x * 0.5 / 3, ["affine", "affine"]),
    "mul": (lambda m, x: torch.mul(x, x.sigmoid()), ["sigmoid", "mul"]),
    "gate": (lambda m, x: x * x.mean((2, 3), keepdim=True), ["avg_pool2d", "mul"]),
    "square": (lambda m, x: x**2 + x.square() + x.abs(), None),
    # activations
    "relu_torch": (lambda m, x: torch.relu(x), ["clamp"]),
    "relu_inplace": (lambda m, x: F.relu(x, inplace=False).relu_(), ["clamp", "clamp"]),
    "clamp": (lambda m, x: x.clamp(-0.5, 1) + torch.clamp(x, min=0), None),
    "clamp_max": (lambda m, x: x.clamp_max(0.3).clamp_min(-0.2), ["clamp", "clamp"]),
    "hardtanh": (lambda m, x: F.hardtanh(x, -0.3, 0.4), ["clamp"]),
    "leaky": (lambda m, x: F.leaky_relu(x, 0.3, False), ["leaky_relu"]),
    "swish": (lambda m, x: x * torch.sigmoid(x), ["sigmoid", "mul"]),
    "gelu": (lambda m, x: F.gelu(x, approximate="tanh"), ["gelu"]),
    "elu": (lambda m, x: F.elu(x, 0.5), ["elu"]),
    "prelu": (lambda m, x: F.prelu(x, m.channel), ["prelu"]),
    # weights
    "conv": (lambda m, x: F.conv2d(x, m.weight, m.bias, padding=1), ["conv2d"]),
    "conv_same": (lambda m, x: F.conv2d(x, m.weight, None, 1, "same", 2), ["conv2d"]),
    "conv_valid": (lambda m, x: torch.conv2d(x, m.weight, padding="valid"), ["conv2d"]),
    "conv1d": (lambda m, x: F.conv1d(x.flatten(2), m.line, m.bias, 2, 1),
               ["reshape", "reshape", "conv2d", "reshape"]),
    "transposed": (lambda m, x: F.conv_transpose2d(x[:, :, :4, :4], m.weight.transpose(0, 1)[:4]),
                   ["slice_axis", "slice_axis", "conv_transpose2d"]),
    "standardized": (lambda m, x: F.conv2d(x, standardized(m.weight), m.bias), ["conv2d"]),
    "linear_last": (lambda m, x: F.linear(x, m.matrix), ["reshape", "linear", "reshape"]),
    # nothing
    "dropout": (lambda m, x: F.dropout(x, 0.5, training=m.training).contiguous().detach(), []),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_style(style: str) -> None:
    function, expected = STYLES[style]
    model = Function(function).eval()
    gm = normalized(model, IMAGE)
    check_same_floats(gm, model, [IMAGE])
    check_same_floats(gm, model, [torch.cat([IMAGE, IMAGE[:1]])])
    if expected is not None:
        assert ops_of(gm) == expected
    targets = [n.target for n in gm.graph.nodes if n.op.startswith("call_")]
    assert all(t in OPS or t is batch_norm for t in targets), f"float islands: {ops_of(gm)}"


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_style_exported(style: str) -> None:
    model = Function(STYLES[style][0]).eval()
    program = torch.export.export(model, (IMAGE,))
    check_same_floats(normalized(program, IMAGE), model, [IMAGE])


def weighted(weights: Tensor, *values: Tensor) -> Tensor:
    """A sum with learned weights, as EfficientDet's."""
    weights = weights / (weights.sum() + 1e-4)
    return sum(w * value for w, value in zip(weights, values, strict=False))  # type: ignore


FOREIGN = {
    "grid": Function(lambda m, x: x + torch.arange(7.0) / 7),
    "mask": Function(lambda m, x: torch.softmax(x + torch.full((7, 7), -torch.inf).triu(1)[3], -1)),
    "input_per_channel": Function(lambda m, x: (x - m.channel[:, None, None]) / m.channel[0]),
    "broadcast_column": Function(lambda m, x: x[..., :1].expand_as(x) * x),
    "more_axes": Function(lambda m, x: x * m.channel[:1].view(1, 1, 1, 1, 1)),
    "layer_norm": nn.LayerNorm([4, 9, 7]),
    "group_norm": nn.GroupNorm(2, 4),
    "softmax": nn.Softmax(1),
    "fold": Function(lambda m, x: F.unfold(x, 3)),
    "sort": Function(lambda m, x: torch.sort(x, dim=1)[0]),
    "topk": Function(lambda m, x: x.topk(2, 1).values + x.topk(2, 1)[0]),
    "einsum": Function(lambda m, x: torch.einsum("nchw,nchw->nc", x, x)),
    "where": Function(lambda m, x: torch.where(x > 0, x, x * 0.1)),
    "amax_channels": Function(lambda m, x: x.amax(1, True) + x.amax()),
    "norm": Function(lambda m, x: x / x.norm(dim=1, keepdim=True)),
    "lrn_beta": nn.LocalResponseNorm(3, beta=0.5),
    "roll": Function(lambda m, x: torch.roll(x, 1, 3)),
    "circular": nn.Conv2d(4, 5, 3, 2, padding=1, padding_mode="circular"),
    "reflect_row": nn.Sequential(
        nn.Flatten(2), nn.Conv1d(4, 5, 3, 2, padding=1, padding_mode="reflect")
    ),
    "max_indices": nn.MaxPool2d(2, return_indices=True),
    "max_indices_row": nn.Sequential(nn.Flatten(2), nn.MaxPool1d(2, return_indices=True)),
    "max_indices_function": Function(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[1]),
    "adaptive_max_indices": nn.AdaptiveMaxPool2d(2, return_indices=True),
    "softmax_legacy": nn.Softmax(),
    "view_bits": Function(lambda m, x: x.view(torch.int32)),
    "flag_as_index": Function(lambda m, x: x[True]),
    "shuffle_volume": Function(lambda m, x: F.pixel_shuffle(x[None], 2)),
    "vector_t": Function(lambda m, x: x[0, 0, 0].t() * x),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_operator_is_kept_in_float(name: str) -> None:
    """What the dialect lacks stays what it was, between layers that are quantized."""
    model = FOREIGN[name].eval()
    check_same_floats(normalized(model, IMAGE), model, [IMAGE])


def test_functional_module_and_method_give_one_graph() -> None:
    class AsFunction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
            self.head = Head(6)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.conv.weight, self.conv.bias)
            x = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, self.bn.weight,
                             self.bn.bias, False, 0.1, self.bn.eps)  # fmt: skip
            return self.head(x.relu())

    modules = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Head(6)).eval()
    function = AsFunction().eval()
    assert ops_of(check_frontend(function, [IMAGE])) == ops_of(check_frontend(modules, [IMAGE]))


def test_shared_module_keeps_one_weight() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    gm = normalized(nn.Sequential(conv, nn.ReLU(), conv).eval(), IMAGE)
    weights = {n.args[1].target for n in gm.graph.nodes if n.op == "call_function"
               and n.target.__name__ == "conv2d"}  # fmt: skip
    assert len(weights) == 1


class Standardized(nn.Conv2d):
    """A subclass whose forward differs must not be taken for its base."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_subclass_of_a_known_module_is_traced_through() -> None:
    model = nn.Sequential(Standardized(4, 5, 3), nn.ReLU()).eval()
    check_same_floats(normalized(model, IMAGE), model, [IMAGE])


@pytest.mark.parametrize("reduce", [torch.max, torch.min, torch.sort, torch.median])
def test_named_results(reduce) -> None:
    model = Function(lambda m, x: reduce(x, dim=1).values + reduce(x, dim=1)[0]).eval()
    check_same_floats(normalized(model, IMAGE), model, [IMAGE])


def test_optional_mask_may_be_left_out() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x if mask is None else x * mask

    model = Masked().eval()
    check_same_floats(normalized(model, IMAGE), model, [IMAGE])
    check_same_floats(normalized(model, IMAGE, IMAGE), model, [IMAGE, IMAGE])


def test_default_argument_of_forward_may_be_left_out() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor, scale: float = 2.0, extra: Tensor | None = None) -> Tensor:
            return self.conv(x) * scale if extra is None else extra

    model = Optional().eval()
    check_same_floats(normalized(model, IMAGE), model, [IMAGE])


def test_batch_norm_follows_the_layer_it_normalizes() -> None:
    """A module used at two places with different batch norms folds twice, separately."""
    conv = nn.Conv2d(4, 4, 1)
    first, second = conv_bn(4, 4)[1], conv_bn(4, 4)[1]
    nn.init.uniform_(first.weight, 0.5, 2.0)
    model = nn.Sequential(conv, first, conv, second).eval()
    assert ops_of(check_frontend(model, [IMAGE])) == ["conv2d", "conv2d"]


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclass
class Data:
    first: Tensor


def test_namedtuples_become_plain_tuples() -> None:
    model = Function(lambda m, x: {"out": Pair(x * 2, [Pair(x, x + 1)])}).eval()
    for source in (model, torch.export.export(model, (IMAGE,))):
        result = normalized(source, IMAGE)(IMAGE)["out"]
        assert type(result) is tuple and type(result[1][0]) is tuple
        assert torch.equal(result[0], IMAGE * 2) and torch.equal(result[1][0][1], IMAGE + 1)


def test_results_in_a_dataclass_are_refused() -> None:
    with pytest.raises(CaptureError, match="puts its results into a Data"):
        normalized(Function(lambda m, x: Data(x * 2)).eval(), IMAGE)


TRAINING = {
    "batch_norm": nn.BatchNorm2d(4),
    "batch_statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "dropout": nn.Dropout(0.5),
    "alpha_dropout": nn.FeatureAlphaDropout(0.5),
}


@pytest.mark.parametrize("name", TRAINING)
def test_program_exported_in_training_mode_is_refused(name: str) -> None:
    program = torch.export.export(nn.Sequential(TRAINING[name]).train(), (IMAGE,))
    programs = [program]
    if name in ("batch_norm", "dropout"):
        programs.append(program.run_decompositions())
    for source in programs:
        with pytest.raises(CaptureError, match=r"model\.eval\(\) before torch\.export"):
            normalized(source, IMAGE)


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)).eval(),
    Function(lambda m, x: F.dropout(x, 0.5)).eval(),
    Function(lambda m, x: F.batch_norm(x, None, None, training=True)).eval(),
], ids=["batch_statistics", "dropout", "batch_norm"])  # fmt: skip
def test_what_trains_in_inference_mode_is_refused(model: nn.Module) -> None:
    with pytest.raises(CaptureError, match=r"statistics of the batch|at random"):
        normalized(model, IMAGE)
