"""Divide channels of values by factors, and undo it in the layers that read them.

Before: an ANNOTATED graph.  After: the same graph with other weights; the network computes the
same.

    T = clamp(W x + b);  y = V T      ->      T' = clamp((W/s) x + b/s);  y = (V s) T'

There is one factor for each channel class (ir/channels.py). A clamp at 0 stays there. One at u
(ReLU6) becomes one at `u / s_c` in channel c; the operator gets the loosest of them (ir/floats.py).

Every scaled value gets its factors into the metadata: `value of the model = value * factors`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.errors import NumericsError
from fxquant.ir import meta
from fxquant.ir.channels import ChannelClasses, LayerChannels


def equalize(gm: GraphModule, classes: ChannelClasses, factors: Tensor) -> None:
    """Apply factors to the parameters of a graph.

    Args:
        gm: The graph `classes` was made from.
        classes: Its channel classes.
        factors: float64 `[classes.count]`; that of class 0 is 1.

    Raises:
        NumericsError: The factors are not positive numbers, or not as many as there are classes.
    """
    good = bool((torch.isfinite(factors) & (factors > 0)).all())
    if factors.shape != (classes.count,) or not good or float(factors[0]) != 1.0:
        raise NumericsError(
            f"channel factors of shape {tuple(factors.shape)} cannot be applied",
            why=f"there must be {classes.count} positive numbers, the first of them 1",
        )
    for layer in classes.layers:
        if bool(layer.inputs.any() or layer.outputs.any()):
            _scale_layer(gm, layer, factors)
    for node in gm.graph.nodes:
        if node.name in classes.values:
            _scale_value(node, factors[classes.values[node.name]].float())


def _scale_layer(gm: GraphModule, layer: LayerChannels, factors: Tensor) -> None:
    weight_node, bias_node = (*layer.node.args, None)[1:3]
    assert isinstance(weight_node, Node)
    outputs = factors[layer.outputs]  # [O]
    weight = meta.tensor_of(gm, weight_node).detach().double()
    rows = outputs.reshape([-1] + [1] * (weight.ndim - 1))
    _replace(gm, weight_node, layer.scale_columns(weight, factors[layer.inputs]) / rows)
    if isinstance(bias_node, Node):
        _replace(gm, bias_node, meta.tensor_of(gm, bias_node).detach().double() / outputs)


def _scale_value(node: Node, now: torch.Tensor) -> None:
    before = meta.channel_factors(node)
    after = now if before is None else before * now
    clamp: Any = node.kwargs.get("clamp")
    if clamp is not None:
        looser = (1.0 if before is None else float(before.min())) / float(after.min())
        node.kwargs = {**node.kwargs, "clamp": tuple(b and b * looser for b in clamp)}
    meta.set_channel_factors(node, after)


def _replace(gm: GraphModule, node: Node, value: Tensor) -> None:
    """Set a new tensor; the old one may be shared with other graphs."""
    gm.register_parameter(str(node.target), nn.Parameter(value.float(), requires_grad=False))
