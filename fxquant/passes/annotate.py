"""Decide for every operator whether it runs on integers, and for every value its QuantSpec.

Before: a FUSED graph.  After: every operator is integer or has a reason to stay in float; every
value an integer operator reads or writes has a TensorQuant without qparams.

A value has one grid. Operators that only move values (Grid.SHARED) take their operand's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule, Node

from fxquant.config import Config, OpConfig
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.meta import TensorQuant
from fxquant.ir.preparation import PREPARES_INPUT, prepares_input
from fxquant.numerics.ranges import RangeEstimator
from fxquant.numerics.types import activation_spec, weight_spec
from fxquant.ops import Grid
from fxquant.passes.choices import Choices
from fxquant.passes.residuals import requantize_for_layers, residual_values

MOVES_FLOAT_RESULT = "moves the float result"


def is_border(reason: str) -> bool:
    """Whether a reason to stay in float is to lie between the integers and what is outside."""
    return reason.startswith((MOVES_FLOAT_RESULT, PREPARES_INPUT))


def annotate(gm: GraphModule, config: Config) -> GraphModule:
    """Write the decisions into the metadata of `gm`.

    Raises:
        ConfigError: A rule matches nothing.
    """
    choices = Choices(gm, config)
    for node in gm.graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            meta.set_float_reason(node, _float_reason(node, choices))
    _deliver_floats(gm)
    wide = _widen_residuals(gm, choices)
    _weights(gm, choices)
    for node in gm.graph.nodes:
        _value(node, choices, wide)
    return gm


def _widen_residuals(gm: GraphModule, choices: Choices) -> dict[Node, int]:
    """Let layers read copies of sums and of what they add; the bits of these values themselves."""
    bits, wide = choices.config.residual_bits, {}
    if bits is None:
        return wide
    for value in residual_values(gm):
        config, _ = choices.of(value)
        if config is not None and config.activation_bits < bits:
            requantize_for_layers(gm, value)
            wide[value] = bits
    gm.recompile()
    return wide


def _deliver_floats(gm: GraphModule) -> None:
    """Where only float operators or the output read a layer, its accumulators become floats.

    What moves such a result on its way (a final flatten) moves floats.
    """
    for node in gm.graph.nodes:
        if not _reads_integers(node):
            continue
        definition = meta.opdef(node)
        assert definition is not None
        if not definition.accumulates(definition.bind(node)):
            continue
        movers: set[Node] = set()
        if _feeds_only_floats(node, movers):
            meta.set_delivers_float(node)
            for mover in movers:
                meta.set_float_reason(mover, f"{MOVES_FLOAT_RESULT} of {node.name}")


def _feeds_only_floats(node: Node, movers: set[Node]) -> bool:
    for user in node.users:
        if user.op == "output" or not _reads_integers(user):
            continue
        definition = meta.opdef(user)
        moves = definition is not None and definition.moves
        if not moves or not _feeds_only_floats(user, movers):
            return False
        movers.add(user)
    return True


def _float_reason(node: Node, choices: Choices) -> str | None:
    name = getattr(node.target, "__name__", str(node.target))
    definition = meta.opdef(node)
    if definition is None:
        return PREPARES_INPUT if prepares_input(node) else f"{name} has no integer form"
    config, rule = choices.of(node)
    if config is None:
        return f"left in float by the configuration ({rule})"
    activations = _activations(node)
    if not activations:
        return f"{name} works on constants"
    if any(not n.meta["dtype"].is_floating_point for n in activations):
        return f"{name} works on integers of the model"
    if definition.grid is Grid.SHARED:
        source = activations[0]
        if source.op != "placeholder" and meta.float_reason(source) is not None:
            return f"{name} moves values that are in float"
    return None


def _activations(node: Node) -> list[Node]:
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def _weights(gm: GraphModule, choices: Choices) -> None:
    for node in gm.graph.nodes:
        if meta.float_reason(node) is None and meta.is_weighted(node):
            config, rule = choices.of(node)
            assert config is not None
            spec = weight_spec(config.weight_bits)
            known = meta.quant(node.args[1])
            if known is not None and known.spec != spec:
                raise ConfigError(
                    f"the weight {node.args[1]} is shared by layers with different weight_bits",
                    where=meta.place(node),
                    remedy="give all layers that share a weight the same weight_bits",
                )
            meta.set_quant(node.args[1], TensorQuant(spec, None, rule))


def _reads_integers(node: Node) -> bool:
    return node.op.startswith("call_") and meta.float_reason(node) is None


def _value(node: Node, choices: Choices, wide: Mapping[Node, int]) -> None:
    """The spec of one value, if an integer operator writes or reads it."""
    if node.op in ("output", "get_attr"):
        return
    produced = _reads_integers(node) and not meta.delivers_float(node)
    consumed = any(_reads_integers(u) for u in node.users)
    if not (produced or consumed):
        return
    if produced and meta.shares_grid(node):
        source = node.all_input_nodes[0]
        shared = meta.quant(source)
        assert shared is not None
        meta.set_quant(node, TensorQuant(shared.spec, None, f"shared with {source.name}"))
        return
    bits, origin = _activation_bits(node, choices)
    if node in wide:
        bits, origin = wide[node], "residual_bits"
    meta.set_quant(node, TensorQuant(activation_spec(bits), None, origin))


def _activation_bits(node: Node, choices: Choices) -> tuple[int, str]:
    if node.op == "placeholder":
        return 8, "input"
    config, rule = choices.of(node)
    if config is not None:
        return config.activation_bits, rule
    default = choices.config.default
    return (8 if default is None else default.activation_bits), rule


def range_estimators(gm: GraphModule, config: Config) -> dict[str, RangeEstimator]:
    """Range estimator of every value that owns its grid, by node name."""
    choices = Choices(gm, config)
    estimators: dict[str, RangeEstimator] = {}
    for node in gm.graph.nodes:
        if meta.quant(node) is None or node.op == "get_attr":
            continue
        chosen: Any = choices.of(node)[0] if node.op.startswith("call_") else None
        if node.op == "placeholder":
            estimators[node.name] = config.input_range
        else:
            estimators[node.name] = (chosen or config.default or OpConfig()).activation_range
    return estimators
