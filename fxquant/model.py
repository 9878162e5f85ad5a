"""What users hold: `Prepared` (being calibrated) and `Quantized` (done)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from fxquant.errors import ConfigError, UnsupportedError
from fxquant.ir import meta
from fxquant.ir.batch import run_in_batches, samples_at_once
from fxquant.ir.inputs import check_inputs
from fxquant.passes.annotate import is_border
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
        if reason is None or is_border(reason):
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
            ConfigError: Number, type, shape or batch size of the inputs is wrong.
        """
        graph, inputs = self.integer.graph, self.checked(inputs)
        most = samples_at_once(self.calibrated.graph.nodes)
        result = run_in_batches(graph, self.integer, inputs, self.batch, most)
        shared = {id(t) for t in (*inputs, *self.integer.parameters(), *self.integer.buffers())}
        return tree_map_only(Tensor, lambda t: t.clone() if id(t) in shared else t, result)

    def reference(self, *inputs: Tensor) -> Any:
        """The integer reference interpreter: another name of calling the network."""
        return self(*inputs)

    def checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs in float32.

        Raises:
            ConfigError: Their number, type, shape or batch size is wrong.
        """
        check_inputs(self.calibrated, inputs, ConfigError)
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
        """Write a `.fxq` file; missing folders are made. See fxquant/storage."""
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantized:
        notes, provenance = dict(self.notes), copy.deepcopy(self.provenance, memo)
        return Quantized(copy.deepcopy(self.calibrated, memo), notes, provenance, self.batch)

    def __copy__(self) -> Quantized:
        return replace(self)

    def __reduce__(self) -> NoReturn:
        """Refuse pickle, which would write a graph that cannot be read back."""
        raise UnsupportedError(
            "a quantized network cannot be pickled",
            why="its graph is made of operators that pickle cannot restore",
            remedy='write it with quantized.save("net.fxq"), read it with fxquant.load',
        )

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
