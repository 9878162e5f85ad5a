"""What users hold: `Prepared` (being calibrated) and `Quantized` (done)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.batch import run_in_batches, samples_at_once
from fxquant.passes.annotate import MOVES_FLOAT_RESULT
from fxquant.passes.insert_qdq import insert_qdq
from fxquant.passes.integerize import integerize


@dataclass(frozen=True, slots=True)
class FloatIsland:
    """An operator that stays in float, and why."""

    node: str
    operator: str
    module: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.reason}"


def float_islands(gm: GraphModule) -> tuple[FloatIsland, ...]:
    """The float operators of an annotated graph, in execution order."""
    islands = []
    for node in gm.graph.nodes:
        reason = meta.float_reason(node)
        if reason is None or reason.startswith(MOVES_FLOAT_RESULT):
            continue
        operator = getattr(node.target, "__name__", str(node.target))
        islands.append(FloatIsland(node.name, operator, meta.provenance(node).name, reason))
    return tuple(islands)


@dataclass(slots=True, eq=False)
class Quantized:
    """A quantized network: one calibrated graph, and the graphs made from it.

    Attributes:
        calibrated: Graph with integer weight codes and a grid on every value.
        notes: What happened to single nodes during quantization.
        provenance: Versions, configuration and solver, as plain JSON values.
        batch: The only batch size the graph was captured for, None if any will do.
    """

    calibrated: GraphModule
    notes: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    batch: int | None = None
    _qdq: GraphModule | None = field(default=None, repr=False)
    _integer: GraphModule | None = field(default=None, repr=False)

    @property
    def graph_module(self) -> GraphModule:
        """The fx graph with quantize/dequantize nodes: in float, for other tools.

        Gradients pass to its input, and to scales and biases that require them; codes are fixed.
        It rounds each result from a float value, so single codes differ by one from the integers.
        """
        if self._qdq is None:
            self._qdq = insert_qdq(self.calibrated)
        return self._qdq

    @property
    def integer(self) -> GraphModule:
        """The INTEGER graph; running it is the reference interpreter."""
        if self._integer is None:
            self._integer = integerize(self.calibrated)
        return self._integer

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        """Simulate the device: float in, float out, and between them its integers, bit for bit.

        Gradients do not pass; they do through `graph_module`.

        Raises:
            ConfigError: Number, type or shape of the inputs is wrong.
        """
        graph = self.integer.graph
        most = samples_at_once(self.calibrated.graph.nodes)
        return run_in_batches(graph, self.integer, self.checked(inputs), self.batch, most)

    def reference(self, *inputs: Tensor) -> Any:
        """The integer reference interpreter: another name of calling the network."""
        return self(*inputs)

    def checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs in float32, if their number, types and shapes are right.

        Raises:
            ConfigError: They are not.
        """
        nodes = [n for n in self.calibrated.graph.nodes if n.op == "placeholder"]
        if len(inputs) != len(nodes):
            raise ConfigError(f"{len(inputs)} inputs were given, the network takes {len(nodes)}")
        for node, x in zip(nodes, inputs, strict=True):
            expected = meta.shape_of(node)
            if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
                kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise ConfigError(f"input {node.name} is {kind}", why="it must be a float tensor")
            if x.ndim != len(expected) or tuple(x.shape[1:]) != expected[1:]:
                raise ConfigError(
                    f"input {node.name} has shape {tuple(x.shape)}",
                    why=f"the network takes {expected} (any batch size)",
                )
        return tuple(x.to(torch.float32) for x in inputs)

    @property
    def float_islands(self) -> tuple[FloatIsland, ...]:
        """Operators that stay in float, with reasons."""
        return float_islands(self.calibrated)

    def graph(self, form: str = "networkx") -> Any:
        """The network as a graph for other tools; see fxquant/inspection/graph.py.

        Args:
            form: "networkx" for a `networkx.DiGraph` with attributes, "dot" for Graphviz text,
                "svg" for a picture as text.

        Raises:
            ConfigError: The form is unknown.
        """
        from fxquant.inspection import dot, network_graph, svg

        views = {"networkx": network_graph, "dot": dot, "svg": svg}
        if form not in views:
            raise ConfigError(
                f"there is no graph view {form!r}", remedy='use "networkx", "dot" or "svg"'
            )
        return views[form](self)

    def report(
        self, path: str | Path, data: Any = None, compiled: Any = None, model: Any = None
    ) -> Path:
        """Write an HTML report and return its path; see `fxquant.inspect`.

        Args:
            path: The file to write.
            data: Inputs for per-layer errors and histograms.
            compiled: A compiled network whose latency and memory are to be shown.
            model: The float model, for errors that include weight rounding.

        Raises:
            CalibrationError: The data is empty.
            ConfigError: `model` is not the one that was quantized.
        """
        from fxquant.inspection import report

        return report(self, path, data, compiled, model)

    def save(self, path: str | Path) -> None:
        """Write a `.fxq` file; see fxquant/storage.py."""
        from fxquant.storage import save

        save(self, path)

    def export_onnx(
        self, path: str | Path, sample: Tensor | tuple[Tensor, ...] | None = None
    ) -> Path:
        """Write an ONNX model in QDQ form and return its path; see fxquant/onnx.

        Args:
            path: The file to write.
            sample: A batch of inputs, to quantize residual sums as ONNX Runtime needs it.

        Raises:
            ConfigError: The sample does not fit the network.
        """
        from fxquant.onnx import export_onnx

        return export_onnx(self, path, sample)

    def __str__(self) -> str:
        rows = [("node", "op", "shape", "weight", "result", "note")]
        for node in self.calibrated.graph.nodes:
            if node.op in ("get_attr", "output"):
                continue
            operator = getattr(node.target, "__name__", str(node.target))
            quant, reason = meta.quant(node), meta.float_reason(node)
            weight = str(meta.qparams(node.args[1])) if meta.is_layer(node) else ""
            result = str(quant.qparams) if quant is not None else "float"
            note = f"float: {reason}" if reason else self.notes.get(node.name, "")
            shape = "x".join(map(str, node.meta.get("shape", ())))
            rows.append((node.name, operator, shape, weight, result, note))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)
