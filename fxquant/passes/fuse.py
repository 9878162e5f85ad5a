"""Fuse what one kernel computes into one node. `RULES` is the whole behaviour.

Each rule looks at one node and either returns None (no match), a `Refusal` with the reason, or
rewrites and returns the node that now stands for the result. Rules run to a fixpoint, in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.ir import meta
from fxquant.ir.build import infer_shape, register, renamed
from fxquant.ops import shape as shape_ops
from fxquant.ops.arithmetic import add
from fxquant.ops.conv import conv2d, conv_transpose2d, linear
from fxquant.ops.elementwise import affine, clamp
from fxquant.ops.normalization import batch_norm

logger = logging.getLogger("fxquant")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A pattern that matched but must not be rewritten."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One fusion: `rewrite(gm, node)` as described in the module docstring."""

    name: str
    rewrite: Callable[[GraphModule, Node], Node | Refusal | None]


def fuse(gm: GraphModule) -> GraphModule:
    """Apply all rules to a fixpoint."""
    for rule in RULES:
        changed = True
        while changed:
            changed = False
            for node in list(gm.graph.nodes):
                if node.op != "call_function" or not (node.users):
                    continue
                result = rule.rewrite(gm, node)
                if isinstance(result, Node):
                    changed = True
                elif result is not None:
                    logger.debug("%s refused at %s: %s", rule.name, node.name, result.reason)
            gm.graph.eliminate_dead_code()
    return renamed(gm)


def _operand(node: Node, index: int = 0) -> Node | None:
    value = node.args[index] if index < len(node.args) else None
    return value if isinstance(value, Node) else None


def _only_user(producer: Node, user: Node) -> bool:
    return list(producer.users) == [user]


def _replace(
    gm: GraphModule, old: Node, target: Any, args: tuple[Any, ...], kwargs: Any, *parts: Node
) -> Node:
    """Put one fused node in the place of `old`, named and explained by the parts it is made of."""
    with gm.graph.inserting_before(old):
        new = gm.graph.create_node("call_function", target, args, kwargs, parts[0].name)
    infer_shape(new)
    origin = meta.provenance(parts[0])
    for part in parts[1:]:
        origin = origin + meta.provenance(part)
    meta.set_provenance(new, origin)
    old.replace_all_uses_with(new)
    gm.graph.erase_node(old)
    return new


def _tensor(gm: GraphModule, node: Node | None) -> Tensor | None:
    return None if node is None else meta.tensor_of(gm, node).detach()


def _get_attr(gm: GraphModule, before: Node, name: str, value: Tensor) -> Node:
    attribute = register(gm, name, value)
    first = next(n for n in gm.graph.nodes if n.op not in ("placeholder", "get_attr"))
    with gm.graph.inserting_before(first):
        node = gm.graph.get_attr(attribute)
    meta.set_value(node, tuple(value.shape), value.dtype)
    return node


def _batch_norm_affine(gm: GraphModule, node: Node) -> tuple[Tensor, Tensor]:
    """Scale and offset of a batch norm, float64 `[C]`: `y = x * scale + offset`."""
    mean, variance, weight, bias = (_tensor(gm, _operand(node, i)) for i in range(1, 5))
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance.double() + meta.static(node, "eps"))
    if weight is not None:
        scale = scale * weight.double()
    offset = -mean.double() * scale
    return scale, offset if bias is None else offset + bias.double()


def _scale_and_offset(gm: GraphModule, node: Node, channels: int) -> tuple[Tensor, Tensor]:
    """Those of a batch norm, or of an affine function for every channel, float64 `[C]`."""
    if node.target is batch_norm:
        return _batch_norm_affine(gm, node)
    ones = torch.ones(channels, dtype=torch.float64)
    return ones * meta.static(node, "scale"), ones * meta.static(node, "offset")


def fold_into_layer(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`conv(x, W, b) * scale + offset` -> `conv(x, W*scale, b*scale + offset)`; linear likewise.

    The function is a batch norm, or one scale and offset for all channels. Those may come from the
    code of the module behind the layer, whose rules do not mean the layer.
    """
    layer = _operand(node)
    if node.target not in (batch_norm, affine) or layer is None:
        return None
    if layer.target not in (conv2d, conv_transpose2d, linear):
        return None
    if not _only_user(layer, node):
        return Refusal("the layer's result is used elsewhere")
    if node.target is batch_norm and layer.target is linear and len(meta.shape_of(node)) != 2:
        return Refusal("the batch norm is not over the linear layer's features")
    if layer.kwargs.get("clamp") is not None or len(layer.args) > 3:
        return Refusal("an activation or a sum lies between layer and function")
    weight_node, bias_node = _operand(layer, 1), _operand(layer, 2)
    assert weight_node is not None
    weight = meta.tensor_of(gm, weight_node).detach().double()
    scale, offset = _scale_and_offset(gm, node, len(weight))
    folded = weight * scale.reshape([-1] + [1] * (weight.ndim - 1))
    bias = _tensor(gm, bias_node)
    new_bias = offset if bias is None else offset + bias.double() * scale
    w = _get_attr(gm, node, str(weight_node.target), folded.float())
    b = _get_attr(gm, node, f"{weight_node.target}_bias", new_bias.float())
    args = (_operand(layer), w, b)
    parts = (layer, node) if node.target is batch_norm else (layer,)
    return _replace(gm, node, layer.target, args, dict(layer.kwargs), *parts)


def batch_norm_as_conv(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """A batch norm with nothing to fold into is a 1x1 depthwise convolution."""
    x = _operand(node)
    if node.target is not batch_norm or x is None:
        return None
    shape = meta.shape_of(node)
    if len(shape) not in (2, 4):
        return Refusal(f"batch norm of rank {len(shape)}")
    scale, offset = _batch_norm_affine(gm, node)
    c = shape[1]
    w = _get_attr(gm, node, f"{node.name}_weight", scale.float().reshape(c, 1, 1, 1))
    b = _get_attr(gm, node, f"{node.name}_bias", offset.float())
    kwargs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": c}
    if len(shape) == 4:
        return _replace(gm, node, conv2d, (x, w, b), kwargs, node)
    with gm.graph.inserting_before(node):
        lifted = gm.graph.call_function(shape_ops.reshape, (x,), {"shape": (0, c, 1, 1)})
        infer_shape(lifted)
        y = gm.graph.call_function(conv2d, (lifted, w, b), kwargs)
        infer_shape(y)
    for new in (lifted, y):
        meta.set_provenance(new, meta.provenance(node))
    return _replace(gm, node, shape_ops.reshape, (y,), {"shape": (0, c)}, node)


def pad_into_conv(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`conv(pad(x, zeros on H and W))` -> `conv(x)` with asymmetric padding."""
    pad = _operand(node)
    if node.target is not conv2d or pad is None or pad.target is not shape_ops.pad:
        return None
    pads = meta.static(pad, "pads")
    amounts = (*pads[2], *pads[3])
    if any(pads[0]) or any(pads[1]) or pad.kwargs["value"] != 0 or min(amounts) < 0:
        return Refusal("not a zero padding of the plane")
    padding = tuple(a + b for a, b in zip(meta.static(node, "padding"), amounts, strict=True))
    args = (pad.args[0], *node.args[1:])
    return _replace(gm, node, conv2d, args, {**node.kwargs, "padding": padding}, node)


def clamp_into_producer(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`clamp(op(x))` -> `op(x, clamp=...)` for operators with a clamping epilogue."""
    producer = _operand(node)
    if node.target is not clamp or producer is None or producer.op != "call_function":
        return None
    definition = meta.opdef(producer)
    if definition is None or not definition.clamps:
        return None
    if not _only_user(producer, node):
        return Refusal("the unclamped value is used elsewhere")
    if producer.kwargs.get("clamp") is not None:
        return Refusal("already clamped")
    kwargs = {**producer.kwargs, "clamp": node.kwargs["clamp"]}
    return _replace(gm, node, producer.target, producer.args, kwargs, producer, node)


def clamp_before_reshape(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`clamp(reshape(x))` -> `reshape(clamp(x))`, so that the clamp meets its layer (conv1d)."""
    reshape = _operand(node)
    if node.target is not clamp or reshape is None or reshape.target is not shape_ops.reshape:
        return None
    if not _only_user(reshape, node):
        return Refusal("the reshaped value is used elsewhere")
    x = _operand(reshape)
    assert x is not None
    with gm.graph.inserting_before(node):
        clamped = gm.graph.call_function(clamp, (x,), dict(node.kwargs))
    infer_shape(clamped)
    meta.set_provenance(clamped, meta.provenance(node))
    return _replace(gm, node, shape_ops.reshape, (clamped,), dict(reshape.kwargs), reshape)


def add_into_conv(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`add(conv(x), r)` -> `conv(x, residual=r)`: the sum happens on the accumulators."""
    if node.target is not add:
        return None
    a, b = _operand(node, 0), _operand(node, 1)
    if a is None or b is None or a is b:
        return None
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    for layer, residual in sorted(((a, b), (b, a)), key=lambda pair: -order[pair[0]]):
        if layer.target is not conv2d or len(layer.args) > 3 or not _only_user(layer, node):
            continue
        if layer.kwargs.get("clamp") is not None or layer.kwargs["groups"] != 1:
            continue
        if meta.shape_of(layer) != meta.shape_of(residual):
            continue
        args = (*(_operand(layer, i) for i in range(3)), residual)
        kwargs = {**layer.kwargs, "clamp": node.kwargs.get("clamp")}
        return _replace(gm, node, conv2d, args, kwargs, layer, node)
    return Refusal("no operand is an unclamped dense convolution used only here")


def reshape_of_reshape(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`reshape(reshape(x))` -> one reshape, or x itself where the shape comes back."""
    inner = _operand(node)
    if node.target is not shape_ops.reshape or inner is None or inner.target != node.target:
        return None
    x = _operand(inner)
    assert x is not None
    if meta.shape_of(x) == meta.shape_of(node):
        node.replace_all_uses_with(x)
        gm.graph.erase_node(node)
        return x
    shape = shape_ops.for_any_batch(meta.shape_of(x), meta.shape_of(node))
    return _replace(gm, node, shape_ops.reshape, (x,), {"shape": shape}, node)


def channel_shuffle(gm: GraphModule, node: Node) -> Node | Refusal | None:
    """`reshape(permute(reshape(x, [N,g,c,H,W]), 0 2 1 3 4), [N,gc,H,W])` -> channel_shuffle."""
    permuted = _operand(node)
    if node.target is not shape_ops.reshape or permuted is None:
        return None
    if permuted.target is not shape_ops.permute or meta.static(permuted, "dims") != (0, 2, 1, 3, 4):
        return None
    split = _operand(permuted)
    if split is None or split.target is not shape_ops.reshape:
        return None
    x = _operand(split)
    if x is None or meta.shape_of(x) != meta.shape_of(node) or len(meta.shape_of(x)) != 4:
        return None
    if meta.shape_of(split)[3:] != meta.shape_of(x)[2:]:
        return None
    groups = meta.shape_of(split)[1]
    return _replace(gm, node, shape_ops.channel_shuffle, (x,), {"groups": groups}, node)


RULES = (
    Rule("reshape-of-reshape", reshape_of_reshape),
    Rule("fold-into-layer", fold_into_layer),
    Rule("batch-norm-as-conv", batch_norm_as_conv),
    Rule("pad-into-conv", pad_into_conv),
    Rule("clamp-before-reshape", clamp_before_reshape),
    Rule("clamp-into-producer", clamp_into_producer),
    Rule("add-into-conv", add_into_conv),
    Rule("channel-shuffle", channel_shuffle),
)
