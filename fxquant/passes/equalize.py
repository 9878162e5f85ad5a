"""Divide channels of values by factors, and undo it in the layers that read them.

Before: an ANNOTATED graph.  After: the same graph with other weights; the network computes the
same, up to its upper clamps.

    T = clamp(W x + b);  y = V T      ->      T' = clamp((W/s) x + b/s);  y = (V s) T'

There is one factor for each channel class (ir/channels.py). Where the clamp is `[0, inf)` or
absent, `T' = T/s` exactly. With an upper bound u (ReLU6) T' is `T/s` clipped at u, the same as long
as the channel stays below `s u`: for s < 1 the bound becomes the end of the channel's own range.

Every scaled value gets its factors into the metadata: `value of the model = value * factors`.
"""

from __future__ import annotations

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
            before, now = meta.channel_factors(node), factors[classes.values[node.name]].float()
            meta.set_channel_factors(node, now if before is None else before * now)


def _scale_layer(gm: GraphModule, layer: LayerChannels, factors: Tensor) -> None:
    weight_node, bias_node = (*layer.node.args, None)[1:3]
    assert isinstance(weight_node, Node)
    outputs = factors[layer.outputs]  # [O]
    weight = meta.tensor_of(gm, weight_node).detach().double()
    rows = outputs.reshape([-1] + [1] * (weight.ndim - 1))
    _replace(gm, weight_node, layer.scale_columns(weight, factors[layer.inputs]) / rows)
    if isinstance(bias_node, Node):
        _replace(gm, bias_node, meta.tensor_of(gm, bias_node).detach().double() / outputs)


def _replace(gm: GraphModule, node: Node, value: Tensor) -> None:
    """Set a new tensor; the old one may be shared with other graphs."""
    gm.register_parameter(str(node.target), nn.Parameter(value.float(), requires_grad=False))
