"""The quantized network as an ONNX model in QDQ form, for other engines to run.

The model has the same weight codes and grids as ours. Rules that the engines fuse by:

* weight = int8 initializer -> DequantizeLinear, bias = int32 -> DequantizeLinear, per channel;
* each value is quantized once, and each reader has a DequantizeLinear of its own;
* no Relu or Clip where the following QuantizeLinear saturates at the same bound;
* `conv(x, residual=r)` -> `Add(Conv(x), r)` for engines that add to the accumulators (OpenVINO),
  else `Add(DQ(Q(Conv(x))), r)` for those that add 8-bit codes (ONNX Runtime). The grid of that
  value does not exist in our network and is taken from its range on a sample.

Activations of fewer than 8 bits are uint8 with a Clip on the codes, those of 16 bits are uint16
(opset 21); the bias of a layer that reads 16 bits stays in float, since its codes are int64.
Float islands are written as float operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_arg

from fxquant.errors import UnsupportedError
from fxquant.ir import meta
from fxquant.ir.batch import run_in_batches
from fxquant.ir.frontend.call import canonical_name
from fxquant.model import Quantized
from fxquant.numerics.types import activation_spec, qparams_from_range
from fxquant.onnx.emitters import EMITTERS
from fxquant.onnx.float_emitters import FLOAT_EMITTERS
from fxquant.ops import Operand
from fxquant.ops.conv import conv2d

_OPSET, _IR_VERSION = 17, 8
_WIDE_OPSET, _WIDE_IR_VERSION = 21, 10  # uint16 codes
_BYTE, _WORD = 255, 65535


def build(quantized: Quantized, sample: Tensor | tuple[Tensor, ...] | None) -> bytes:
    """See `fxquant.onnx.qdq_model`."""
    inputs = (sample,) if isinstance(sample, Tensor) else sample
    summands = None if inputs is None else _summands(quantized, inputs)
    model = OnnxBuilder(quantized, summands).run()
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Summands(Interpreter):
    """Records the range of every convolution before a residual is added."""

    ranges: dict[str, tuple[Tensor, Tensor]]  # over all batches

    def run_node(self, n: Node) -> Any:
        if n.target is conv2d and len(n.args) > 3:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            y = conv2d(*args[:3], **{**kwargs, "clamp": None})
            low, high = self.ranges.get(n.name, (y.amin(), y.amax()))
            self.ranges[n.name] = (torch.minimum(low, y.amin()), torch.maximum(high, y.amax()))
        return super().run_node(n)


@torch.no_grad()
def _summands(quantized: Quantized, sample: tuple[Tensor, ...]) -> dict[str, Operand]:
    runner = _Summands(quantized.graph_module)
    runner.ranges = {}
    graph, inputs = quantized.graph_module.graph, quantized.checked(sample)
    run_in_batches(graph, runner.run, inputs, quantized.batch)
    spec = activation_spec(8)
    return {n: Operand.of(qparams_from_range(*r, spec)) for n, r in runner.ranges.items()}


class OnnxBuilder:
    """Writes the ONNX graph node by node; the emitters call its methods.

    Args:
        quantized: The network.
        summands: Grid of each convolution with a residual, before the sum; None: it has none.
    """

    def __init__(self, quantized: Quantized, summands: dict[str, Operand] | None) -> None:
        self.gm, self.summands = quantized.calibrated, summands
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.codes: dict[Node, tuple[str, Operand]] = {}  # quantized values
        self.floats: dict[Node, str] = {}
        self._count = 0

    def run(self) -> onnx.ModelProto:
        """Build the model.

        Raises:
            UnsupportedError: Operators without an ONNX form.
        """
        self._check()
        inputs, outputs = [], []
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                inputs.append(_value_info(node.name, node))
                self._store(node, node.name)
            elif node.op == "output":
                leaves: list[Node] = []
                map_arg(node.args[0], leaves.append)
                for i, value in enumerate(leaves):
                    self.node("Identity", [self.read(value)], output=f"output{i}")
                    outputs.append(_value_info(f"output{i}", value))
            elif node.op != "get_attr":
                self._store(node, self._emit(node))
        graph = helper.make_graph(self.nodes, "fxquant", inputs, outputs, self.initializers)
        wide = any(grid.qmax == _WORD for _, grid in self.codes.values())
        opset, version = (_WIDE_OPSET, _WIDE_IR_VERSION) if wide else (_OPSET, _IR_VERSION)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version,
            producer_name="fxquant",
        )  # fmt: skip

    def _check(self) -> None:
        missing = [n for n in self.gm.graph.nodes if n.op.startswith("call_") and not _known(n)]
        if missing:
            names = sorted({canonical_name(n) for n in missing})
            raise UnsupportedError(
                f"operators without an ONNX form: {', '.join(names)}",
                where="; ".join(meta.place(n) for n in missing[:8]),
                remedy="add rows to fxquant/onnx/emitters.py or float_emitters.py, or replace "
                "these operators",
            )

    def _emit(self, node: Node) -> str:
        definition = meta.opdef(node)
        if definition is not None:
            return EMITTERS[definition.function](self, node, definition.bind(node))
        return FLOAT_EMITTERS[canonical_name(node)](self, node)

    def _store(self, node: Node, value: str) -> None:
        """Quantize a result, if it has a grid."""
        if meta.quant(node) is None or meta.delivers_float(node):
            self.floats[node] = value
            return
        grid = Operand.of(meta.qparams(node))
        self.codes[node] = (self.quantize(value, grid), grid)

    def read(self, node: Node) -> str:
        """The value as float, dequantized for this reader."""
        if node.op == "get_attr" and meta.quant(node) is None:
            return self.constant(meta.tensor_of(self.gm, node).numpy())
        if node in self.floats:
            return self.floats[node]
        codes, grid = self.codes[node]
        return self.dequantize(codes, grid)

    def quantize(self, value: str, grid: Operand) -> str:
        """QuantizeLinear, with a Clip on the codes where their type is wider than the grid."""
        codes = self.node("QuantizeLinear", [value, *self._grid(grid)])
        if grid.qmax in (_BYTE, _WORD):
            return codes
        bounds = [self.constant(np.array(b, np.uint8)) for b in (grid.qmin, grid.qmax)]
        return self.node("Clip", [codes, *bounds])

    def dequantize(self, codes: str, grid: Operand) -> str:
        """DequantizeLinear."""
        return self.node("DequantizeLinear", [codes, *self._grid(grid)])

    def _grid(self, grid: Operand) -> list[str]:
        dtype = np.uint8 if grid.qmax <= _BYTE else np.uint16
        scale = self.constant(np.array(grid.scale, np.float32))
        return [scale, self.constant(np.array(grid.zero_point, dtype))]

    def weight(self, node: Node, flipped: bool = False) -> str:
        """Weight `[O, ...]` of a weighted operator, dequantized if it has codes.

        Args:
            node: The operator.
            flipped: Reverse the kernel along both axes.
        """
        source = node.args[1]
        assert isinstance(source, Node)
        values = meta.tensor_of(self.gm, source)
        values = self.constant((values.flip(2, 3) if flipped else values).numpy())
        if meta.quant(source) is None:
            return values
        scale = meta.qparams(source).scale.numpy()
        zeros = self.constant(np.zeros(scale.shape, np.int8))
        return self.node("DequantizeLinear", [values, self.constant(scale), zeros], axis=0)

    def bias(self, node: Node) -> list[str]:
        """Bias `[O]` of a weighted operator, if it has one; int32 codes where that is its form."""
        source, weight, bias = (*node.args, None)[:3]
        if not isinstance(bias, Node):
            return []
        assert isinstance(source, Node) and isinstance(weight, Node)
        values = meta.tensor_of(self.gm, bias)
        if not meta.runs_on_integers(node) or self.codes[source][1].qmax > _BYTE:
            return [self.constant(values.numpy())]
        scale = meta.qparams(weight).scale.double() * self.codes[source][1].scale
        codes = torch.round(values.double() / scale).to(torch.int32)
        operands = [self.constant(codes.numpy()), self.constant(scale.float().numpy())]
        return [self.node("DequantizeLinear", operands, axis=0)]

    def clamp(self, value: str, node: Node) -> str:
        """The node's fused clamp, unless the following QuantizeLinear saturates there anyway."""
        arguments: dict[str, Any] = dict(node.kwargs)
        lower, upper = arguments.get("clamp") or (None, None)
        if meta.quant(node) is not None and not meta.delivers_float(node):
            grid = Operand.of(meta.qparams(node))
            lower = None if lower is None or grid.code(lower) <= grid.qmin else lower
            upper = None if upper is None or grid.code(upper) >= grid.qmax else upper
        if lower is None and upper is None:
            return value
        bounds = ["" if b is None else self.constant(np.array(b, np.float32))
                  for b in (lower, upper)]  # fmt: skip
        return self.node("Clip", [value, *bounds])

    def constant(self, value: np.ndarray) -> str:
        """An initializer."""
        self._count += 1
        name = f"c{self._count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Append a node with one result; returns the result's name."""
        self._count += 1
        output = output or f"v{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"n{self._count}", **attributes))
        return output


def _known(node: Node) -> bool:
    if meta.opdef(node) is not None:
        return node.target in EMITTERS
    return canonical_name(node) in FLOAT_EMITTERS


def _value_info(name: str, node: Node) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(meta.shape_of(node)))
