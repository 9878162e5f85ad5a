"""Render the calibrated grids as quantize/dequantize nodes.

Before: CALIBRATED: weights are integer codes, grids are in the metadata.
After:  QDQ: `w_codes -> dequantize_weight -> conv2d -> quantize -> dequantize -> ...`, a float
        graph that runs in torch, trains with straight-through gradients and simulates the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxquant.ir import meta
from fxquant.ir.build import GraphBuilder
from fxquant.ops import Operand
from fxquant.ops.qdq import dequantize, dequantize_weight, quantize


def insert_qdq(gm: GraphModule) -> GraphModule:
    """The QDQ graph of a calibrated graph, which is left as it is."""
    return _Inserter(gm).run()


class _Inserter:
    """Two carriers of each value: as it leaves its operator, and after quantize/dequantize."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm, self.builder = gm, GraphBuilder()
        self.plain: dict[Node, Node] = {}
        self.on_grid: dict[Node, Node] = {}

    def run(self) -> GraphModule:
        outputs: Any = None
        for node in self.gm.graph.nodes:
            if node.op == "output":
                outputs = map_arg(node.args[0], self._read)
            elif node.op == "placeholder":
                new = self.builder.placeholder(node.name, *self._value(node))
                self._add(node, new)
            elif node.op == "get_attr":
                self.plain[node] = self._tensor(node)
            else:
                self._add(node, self._call(node))
        return self.builder.finish(outputs)

    @staticmethod
    def _value(node: Node) -> tuple[tuple[int, ...], torch.dtype]:
        return meta.shape_of(node), meta.dtype_of(node)

    def _tensor(self, node: Node) -> Node:
        value, quant = meta.tensor_of(self.gm, node), meta.quant(node)
        codes = self.builder.tensor(value, str(node.target))
        if quant is None:
            return codes
        scale = self.builder.tensor(meta.qparams(node).scale, f"{node.target}_scale")
        name = f"{node.name}_dequantized"
        return self.builder.call(dequantize_weight, (codes, scale), name=name)

    def _call(self, node: Node) -> Node:
        if meta.float_reason(node) is None:
            args, kwargs = map_arg(node.args, self._gridded), map_arg(node.kwargs, self._gridded)
        else:
            args, kwargs = map_arg(node.args, self._read), map_arg(node.kwargs, self._read)
        new = self.builder.graph.create_node(node.op, node.target, args, kwargs, node.name)
        new.meta.update({k: v for k, v in node.meta.items() if k != "quant"})
        return new

    def _add(self, node: Node, new: Node) -> None:
        meta.copy_meta(node, new)
        self.plain[node] = self.on_grid[node] = new
        quant = meta.quant(node)
        if quant is None:
            return
        definition = meta.opdef(node)
        if definition is not None and definition.moves and meta.float_reason(node) is None:
            return  # values it moves lie on the grid already
        grid = Operand.of(meta.qparams(node))
        scale = {"scale": grid.scale, "zero_point": grid.zero_point}
        codes = self.builder.call(
            quantize, (new,), {**scale, "qmin": grid.qmin, "qmax": grid.qmax},
            f"{node.name}_quantize",
        )  # fmt: skip
        self.on_grid[node] = self.builder.call(
            dequantize, (codes,), scale, f"{node.name}_dequantize"
        )

    def _gridded(self, node: Node) -> Node:
        return self.on_grid.get(node, self.plain[node])

    def _read(self, node: Node) -> Node:
        """What a float operator reads: another float operator's result unquantized."""
        produced_float = node.op == "placeholder" or meta.float_reason(node) is not None
        return self.plain[node] if produced_float else self._gridded(node)
