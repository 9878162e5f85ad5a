"""The quantized network as an ONNX model in QDQ form, for other engines to run.

The model has the same weight codes and grids as ours. Rules that the engines fuse by:

* weight = int8 initializer -> DequantizeLinear, bias = int32 -> DequantizeLinear, per channel;
* each value is quantized once, and each reader has a DequantizeLinear of its own;
* no Relu or Clip where the following QuantizeLinear saturates at the same bound;
* `conv(x, residual=r)` -> `Add(Conv(x), r)` for engines that add to the accumulators (OpenVINO),
  else `Add(DQ(Q(Conv(x))), r)` for those that add 8-bit codes (ONNX Runtime). The grid of that
  value does not exist in our network and is taken from its range on a sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.fx import Interpreter, Node

from benchmarks.onnx_ops import EMITTERS
from fxquant.errors import UnsupportedError
from fxquant.ir import meta
from fxquant.model import Quantized
from fxquant.numerics.types import activation_spec, qparams_from_range
from fxquant.ops import OPS, Operand
from fxquant.ops.conv import conv2d
from fxquant.passes.annotate import MOVES_FLOAT_RESULT

OPSET, IR_VERSION = 17, 8


def export_qdq(quantized: Quantized, sample: tuple[Tensor, ...] | None) -> bytes:
    """The serialized ONNX model.

    Args:
        quantized: A network with 8-bit activations.
        sample: Inputs that show the range of convolutions before their residual sum, which is
            then quantized; None leaves it in the accumulators.

    Raises:
        UnsupportedError: An operator or a grid has no ONNX form here.
    """
    summands = None if sample is None else _summands(quantized, sample)
    model = OnnxBuilder(quantized, summands).run()
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Summands(Interpreter):
    """Records the range of every convolution before a residual is added."""

    ranges: dict[str, tuple[Tensor, Tensor]]

    def run_node(self, n: Node) -> Any:
        if n.target is conv2d and len(n.args) > 3:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            y = conv2d(*args[:3], **{**kwargs, "clamp": None})
            self.ranges[n.name] = (y.amin(), y.amax())
        return super().run_node(n)


@torch.no_grad()
def _summands(quantized: Quantized, sample: tuple[Tensor, ...]) -> dict[str, Operand]:
    runner = _Summands(quantized.graph_module)
    runner.ranges = {}
    runner.run(*sample)
    spec = activation_spec(8)
    return {n: Operand.of(qparams_from_range(*r, spec)) for n, r in runner.ranges.items()}


class OnnxBuilder:
    """Writes the ONNX graph node by node; the emitters of onnx_ops.py call its methods.

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
        """Build the model."""
        inputs, outputs = [], []
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                shape = list(meta.shape_of(node))
                inputs.append(helper.make_tensor_value_info(node.name, TensorProto.FLOAT, shape))
                self._store(node, node.name)
            elif node.op == "output":
                for i, value in enumerate(node.all_input_nodes):
                    self.node("Identity", [self.read(value)], output=f"output{i}")
                    shape = list(meta.shape_of(value))
                    info = helper.make_tensor_value_info(f"output{i}", TensorProto.FLOAT, shape)
                    outputs.append(info)
            elif node.op != "get_attr":
                self._store(node, self._emit(node))
        graph = helper.make_graph(self.nodes, "fxquant", inputs, outputs, self.initializers)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)

    def _emit(self, node: Node) -> str:
        reason = meta.float_reason(node)
        if reason is not None and not reason.startswith(MOVES_FLOAT_RESULT):
            raise UnsupportedError(
                f"{node.name} stays in float", where=meta.place(node), why=reason
            )
        emitter = EMITTERS.get(node.target)  # type: ignore[arg-type]
        if emitter is None:
            raise UnsupportedError(
                f"operator {getattr(node.target, '__name__', node.target)} has no ONNX form here",
                where=meta.place(node),
                remedy="add a row to benchmarks/onnx_ops.py",
            )
        return emitter(self, node, OPS[node.target].bind(node))  # type: ignore[index]

    def _store(self, node: Node, value: str) -> None:
        """Quantize a result, if it has a grid."""
        if meta.quant(node) is None or meta.delivers_float(node):
            self.floats[node] = value
            return
        grid = Operand.of(meta.qparams(node))
        if (grid.qmin, grid.qmax) != (0, 255):
            raise UnsupportedError(
                f"{node.name} has codes {grid.qmin}..{grid.qmax}",
                why="QuantizeLinear saturates at 0..255 only",
            )
        self.codes[node] = (self.quantize(value, grid), grid)

    def read(self, node: Node) -> str:
        """The value as float, dequantized for this reader."""
        if node in self.floats:
            return self.floats[node]
        codes, grid = self.codes[node]
        return self.dequantize(codes, grid)

    def quantize(self, value: str, grid: Operand) -> str:
        """QuantizeLinear to uint8."""
        return self.node("QuantizeLinear", [value, *self._grid(grid)])

    def dequantize(self, codes: str, grid: Operand) -> str:
        """DequantizeLinear from uint8."""
        return self.node("DequantizeLinear", [codes, *self._grid(grid)])

    def _grid(self, grid: Operand) -> list[str]:
        scale = self.constant(np.array(grid.scale, np.float32))
        return [scale, self.constant(np.array(grid.zero_point, np.uint8))]

    def weight(self, node: Node) -> str:
        """Dequantized weight `[O, ...]` of a weighted operator."""
        source = node.args[1]
        assert isinstance(source, Node)
        codes = self.constant(meta.tensor_of(self.gm, source).numpy())
        scale = meta.qparams(source).scale.numpy()
        zeros = self.constant(np.zeros(scale.shape, np.int8))
        return self.node("DequantizeLinear", [codes, self.constant(scale), zeros], axis=0)

    def bias(self, node: Node) -> list[str]:
        """Dequantized int32 bias `[O]` of a weighted operator, if it has one."""
        source, weight, bias = (*node.args, None)[:3]
        if not isinstance(bias, Node):
            return []
        assert isinstance(source, Node) and isinstance(weight, Node)
        scale = meta.qparams(weight).scale.double() * self.codes[source][1].scale
        codes = torch.round(meta.tensor_of(self.gm, bias).double() / scale).to(torch.int32)
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
