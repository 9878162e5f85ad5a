"""Single layers as problems for layer-wise solvers, without a network around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

from fxquant.numerics.types import QParams, activation_spec, weight_spec
from fxquant.ops import OPS
from fxquant.ops.conv import conv2d, conv_transpose2d, linear
from fxquant.solvers import Layer, LayerProblem
from fxquant.solvers.base import Chunks
from fxquant.solvers.scale_search import floor_scale, round_to_grid, start_scale

PLAIN: dict[str, Any] = {
    "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1,
}  # fmt: skip
# Function, shape of x, shape of the weight, arguments that differ from PLAIN.
GEOMETRIES: dict[str, tuple[Callable[..., Tensor], tuple, tuple, dict[str, Any]]] = {
    "plain": (conv2d, (6, 3, 7, 5), (4, 3, 3, 3), {"padding": (1, 1, 1, 1)}),
    "pointwise": (conv2d, (6, 5, 3, 4), (4, 5, 1, 1), {}),
    "stride": (conv2d, (6, 3, 9, 8), (4, 3, 3, 2), {"stride": (2, 3)}),
    "asymmetric": (conv2d, (6, 3, 7, 6), (4, 3, 3, 3), {"padding": (0, 1, 2, 0), "stride": (2, 2)}),
    "dilation": (conv2d, (6, 2, 9, 9), (4, 2, 3, 2), {"dilation": (2, 3), "padding": (2, 2, 1, 1)}),
    "groups": (conv2d, (6, 6, 5, 5), (4, 3, 3, 3), {"groups": 2}),
    "depthwise": (conv2d, (6, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": (1, 1, 1, 1)}),
    "multiplier": (conv2d, (6, 3, 5, 5), (6, 1, 3, 3), {"groups": 3}),
    "transposed": (conv_transpose2d, (6, 3, 4, 5), (4, 3, 3, 3),
                   {"stride": (2, 2), "padding": (1, 2, 1, 1)}),
    "transposed_cropped": (conv_transpose2d, (6, 2, 5, 4), (3, 2, 2, 2),
                           {"stride": (3, 2), "padding": (-1, 1, 0, -1)}),
    "linear": (linear, (40, 7), (4, 7), {}),
    "linear_rank_4": (linear, (6, 2, 5, 7), (4, 7), {}),
}  # fmt: skip


def grid(scale: float, bits: int = 8) -> QParams:
    """Unsigned activations with zero point in the middle."""
    zero_point = torch.tensor(1 << (bits - 1), dtype=torch.int32)
    return QParams(activation_spec(bits), torch.tensor(scale), zero_point)


def make_layer(
    function: Callable[..., Tensor], weight: Tensor, bits: int = 4, **kwargs: Any
) -> Layer:
    """A layer with random bias, started by rounding to nearest."""
    bias = torch.randn(len(weight), generator=torch.Generator().manual_seed(3))
    if function is not linear:
        kwargs = PLAIN | kwargs
    node = Graph().create_node("call_function", function, (), kwargs, name="layer")
    spec, input = weight_spec(bits), grid(0.05)
    scale, _ = floor_scale(start_scale(weight, spec), bias, input, None)
    return Layer(
        node, OPS[function], "weight", weight, bias, spec, input, None,
        round_to_grid(weight, scale, spec), bias,
    )  # fmt: skip


def make_problem(name: str, bits: int = 4, residual: bool = False, seed: int = 0) -> LayerProblem:
    """A layer of `GEOMETRIES`; correlated positive inputs, errors of a prefix, chunks of 4."""
    function, shape, weight_shape, kwargs = GEOMETRIES[name]
    rng = torch.Generator().manual_seed(seed)
    layer = make_layer(function, torch.randn(weight_shape, generator=rng), bits, **kwargs)
    x = (torch.randn(shape, generator=rng) + torch.randn(shape[:1], generator=rng).reshape(
        [-1] + [1] * (len(shape) - 1))).relu()  # fmt: skip
    x_q = torch.round((x + 0.1 * torch.randn(shape, generator=rng)) / 0.05) * 0.05
    floats, quantized = (x,), (x_q,)
    if residual:
        added = torch.randn(layer.run(floats, layer.weight, None).shape, generator=rng)
        floats, quantized = (x, added), (x_q, torch.round(added / 0.1) * 0.1)
    return LayerProblem(layer, _chunks(floats, 4), _chunks(quantized, 4))


def rechunked(problem: LayerProblem, size: int) -> LayerProblem:
    """The same samples in chunks of another size."""

    def again(chunks: Chunks) -> Chunks:
        return _chunks(tuple(torch.cat(o) for o in zip(*chunks, strict=True)), size)

    return replace(
        problem,
        float_operands=again(problem.float_operands),
        quantized_operands=again(problem.quantized_operands),
    )


def _chunks(operands: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    return [tuple(chunk) for chunk in zip(*(o.split(size) for o in operands), strict=True)]
