"""Comparisons of whole graphs, shared by the tests of frontend, passes, API and backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten

import fxquant
from fxquant.config import W8A8, Config
from fxquant.ir import meta
from fxquant.ir.frontend import capture, normalize
from fxquant.ir.frontend.call import canonical_name
from fxquant.model import Quantized
from fxquant.numerics.types import QTensor
from fxquant.ops import OPS, Operand
from fxquant.ops.qdq import quantize
from fxquant.passes.fuse import fuse
from tests.tolerance import (
    ACCUMULATORS,
    FOLDED,
    SAME_ARITHMETIC,
    assert_close,
    assert_within_lsb,
)


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    return [t for t in tree_flatten(outputs)[0] if isinstance(t, Tensor)]


def normalized(model: Any, *inputs: Tensor) -> GraphModule:
    """FLOAT graph of a model."""
    return normalize(capture(model, inputs), inputs)


def fused(model: Any, *inputs: Tensor) -> GraphModule:
    """FUSED graph of a model."""
    return fuse(normalized(model, *inputs))


def ops_of(gm: GraphModule) -> list[str]:
    """Operator names in execution order: the golden text of a small graph."""
    return [canonical_name(n) for n in gm.graph.nodes if n.op.startswith("call_")]


def node_of(gm: GraphModule, operator: str, index: int = 0) -> Node:
    """The index-th node of an operator."""
    found = [n for n in gm.graph.nodes if getattr(n.target, "__name__", "") == operator]
    return found[index]


@torch.no_grad()
def check_same_floats(
    gm: nn.Module, model: nn.Module, inputs: Sequence[Tensor], tolerance: float = SAME_ARITHMETIC
) -> None:
    """A graph computes what the model computes, in every output."""
    actual, actual_spec = tree_flatten(gm(*inputs))
    expected, expected_spec = tree_flatten(model(*inputs))
    assert actual_spec == expected_spec, "the nesting of the outputs changed"
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, tolerance, f"output {i}")


def check_frontend(model: nn.Module, inputs: Sequence[Tensor]) -> GraphModule:
    """Normalized and fused graphs equal the model; also at another batch size. Returns fused."""
    gm = normalized(model, *inputs)
    check_same_floats(gm, model, inputs)
    fused_graph = fuse(gm)
    check_same_floats(fused_graph, model, inputs, FOLDED)
    more = [torch.cat([x, x.flip(-1), x * 0.5]) for x in inputs]
    check_same_floats(fused_graph, model, more, FOLDED)
    return fused_graph


def quantize_model(
    model: Any, inputs: Sequence[Tensor], config: Config = W8A8, **kwargs: Any
) -> Quantized:
    """Calibrate on the given inputs and convert."""
    examples = tuple(x[:1] for x in inputs)
    return fxquant.quantize(model, [tuple(inputs)], examples, config, progress=False, **kwargs)


class _Trace(Interpreter):
    """Keeps every value by node name."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


@torch.no_grad()
def check_per_operator(quantized: Quantized, inputs: Sequence[Tensor], max_lsb: int = 1) -> int:
    """Every integer operator against its float function on the very same operand codes.

    Operand codes are taken from the reference run, so differences do not add up: each operator is
    within `max_lsb` of the float function, and floats delivered from accumulators are equal.

    Returns:
        How many operators were compared.
    """
    trace = _Trace(quantized.integer)
    trace.run(*inputs)
    gm, compared = quantized.calibrated, 0

    def operand(node: Node) -> Tensor:
        if node.op == "get_attr":
            value, quant = meta.tensor_of(gm, node), meta.quant(node)
            if quant is None:
                return value
            return QTensor(value, meta.qparams(node)).dequantize()
        value = trace.values.get(node.name)
        if (
            value is None
            or value.dtype not in (torch.uint8, torch.uint16)
            or meta.float_reason(node) is not None
        ):
            value = trace.values[f"{node.name}_quantize"]
        grid = Operand.of(meta.qparams(node))
        return (value.float() - grid.zero_point) * torch.tensor(grid.scale)

    for node in gm.graph.nodes:
        if node.op != "call_function" or meta.float_reason(node) is not None:
            continue
        definition = OPS[node.target]
        args, kwargs = map_arg(node.args, operand), map_arg(node.kwargs, operand)
        real = definition.function(*args, **kwargs)
        actual = trace.values[node.name]
        compared += 1
        if meta.delivers_float(node):
            assert_close(actual, real, ACCUMULATORS * 10, node.name)
            continue
        grid = Operand.of(meta.qparams(node))
        expected = quantize(real, scale=grid.scale, zero_point=grid.zero_point,
                            qmin=grid.qmin, qmax=grid.qmax)  # fmt: skip
        assert_within_lsb(actual, expected, max_lsb, 1.0, meta.place(node))
    return compared


def signal_to_noise(expected: Tensor, actual: Tensor) -> float:
    """dB; infinite where equal."""
    noise = float((expected.double() - actual.double()).square().sum())
    signal = float(expected.double().square().sum())
    if noise == 0:
        return float("inf")
    return 10 * float(torch.log10(torch.tensor(max(signal, 1e-300) / noise)))
