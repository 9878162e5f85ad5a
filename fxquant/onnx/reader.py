"""A float ONNX model as a torch module.

Every ONNX node becomes a call of a torch function or a torch layer; `import_layers.py`,
`import_functions.py` and `import_shapes.py` have one row an operator. Layers get the module path
their weight is named after, so that rules on names work as for the model it was exported from.
Nodes that compute shapes are evaluated here: dynamic batches are read as 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper, numpy_helper, reference, shape_inference
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fxquant.errors import FileFormatError, UnsupportedError
from fxquant.onnx.biases import join_biases
from fxquant.onnx.call import OnnxCall

_DAMAGED = (DecodeError, OSError, ValueError, RuntimeError, TypeError, IndexError, KeyError,
            AttributeError, OverflowError, MemoryError, onnx.checker.ValidationError,
            onnx.defs.SchemaError, shape_inference.InferenceError)  # fmt: skip
# What is evaluated while reading: arithmetic on shapes, on operands this small, and operators that
# move the values of a constant.
_SHAPE_ARITHMETIC = frozenset("Add Concat Constant Div Gather Mul Slice Sub".split())
_SHAPE_SIZE = 1024
_MOVES = frozenset("Cast Identity Reshape Squeeze Transpose Unsqueeze".split())


@dataclass(frozen=True, slots=True, eq=False)
class OnnxNetwork:
    """An imported model.

    Attributes:
        module: It as a GraphModule, in inference mode.
        inputs: Shape of every input, by name; None where the file leaves a size open.
    """

    module: GraphModule
    inputs: Mapping[str, tuple[int | None, ...]]


Importer = Callable[["OnnxReader", OnnxCall], Any]


def read(path: Path) -> OnnxNetwork:
    """See `fxquant.onnx.import_onnx`."""
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file", remedy="check the path")
    try:
        model = onnx.load(str(path), load_external_data=False)
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        if not model.graph.node or not model.graph.output:
            raise FileFormatError("the model computes nothing", where=str(path))
        _fix_batch(model.graph)
        model = shape_inference.infer_shapes(model, data_prop=True)
        return OnnxReader(model).run()
    except _DAMAGED as error:
        raise FileFormatError(
            f"cannot read the model: {type(error).__name__}: {str(error).strip()[:300]}",
            where=str(path),
            why="it is no ONNX model, or it is damaged",
        ) from error


def _fix_batch(graph: onnx.GraphProto) -> None:
    """Set an open first size of every input to 1."""
    constants = {i.name for i in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    del graph.value_info[:]  # would contradict the new sizes
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)


@dataclass(eq=False)
class OnnxReader:
    """Walks the nodes; importers call its methods."""

    model: onnx.ModelProto
    module: GraphModule = field(default_factory=lambda: GraphModule(nn.Module(), Graph()))
    values: dict[str, Node] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def run(self) -> OnnxNetwork:
        """Import the model.

        Raises:
            UnsupportedError: Operators that cannot be imported.
        """
        from fxquant.onnx.importers import IMPORTERS

        graph = self.model.graph
        self.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        known = (*graph.input, *graph.value_info, *graph.output)
        self.shapes = {v.name: _shape(v) for v in known if v.type.tensor_type.HasField("shape")}
        inputs = [v for v in graph.input if v.name not in self.constants]
        calls = [self._call(node) for node in graph.node]
        self._check(calls, IMPORTERS)
        for value in inputs:
            self.values[value.name] = self.graph.placeholder(_identifier(value.name))
        for call in calls:
            self._import(call, IMPORTERS)
        results = tuple(self.value(v.name) for v in graph.output)
        self.graph.output(results[0] if len(results) == 1 else results)
        self.graph.eliminate_dead_code()
        join_biases(self.module)
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        return OnnxNetwork(self.module.eval(), {v.name: _shape(v) for v in inputs})

    @property
    def graph(self) -> Graph:
        """The fx graph that is made."""
        return self.module.graph

    def _call(self, node: onnx.NodeProto) -> OnnxCall:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        domains = {o.domain: o.version for o in self.model.opset_import}
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        return OnnxCall(
            op, node.name or (node.output[0] if node.output else op), tuple(node.input),
            tuple(node.output), attributes, domains.get("", domains.get("ai.onnx", 1)),
        )  # fmt: skip

    def _check(self, calls: Sequence[OnnxCall], importers: Mapping[str, Importer]) -> None:
        missing = [c for c in calls if c.op not in importers and c.op not in ("Constant", "Shape")]
        if missing:
            names = ", ".join(sorted({c.op for c in missing}))
            raise UnsupportedError(
                f"operators that cannot be imported: {names}",
                where="; ".join(f"ONNX node {c.name}" for c in missing[:8]),
                remedy="add rows to fxquant/onnx/importers.py, or quantize the torch model itself",
            )

    def _import(self, call: OnnxCall, importers: Mapping[str, Importer]) -> None:
        try:
            if not self._fold(call):
                self._bind(call, importers[call.op](self, call))
                call.refuse_unread()
        except _DAMAGED as error:
            raise call.unsupported(f"{type(error).__name__}: {str(error).strip()}") from error

    def _fold(self, call: OnnxCall) -> bool:
        """Evaluate a node on constants or shapes; whether that was possible."""
        if call.op == "Shape":
            shape = self.shape(call, 0)[call.attribute("start", 0) : call.attribute("end")]
            self.constants[call.outputs[0]] = np.array(shape, np.int64)
            return True
        operands = [i for i in call.inputs if i]
        small = sum(self.constants[i].size for i in operands if i in self.constants) <= _SHAPE_SIZE
        if call.op not in _MOVES and not (call.op in _SHAPE_ARITHMETIC and small):
            return False
        if not all(i in self.constants for i in operands):
            return False
        node = helper.make_node(call.op, call.inputs, call.outputs, **call.attributes)
        evaluator = reference.ReferenceEvaluator(node, opsets={"": call.opset})
        (result,) = evaluator.run(None, {i: self.constants[i] for i in operands})
        self.constants[call.outputs[0]] = np.asarray(result)
        return True

    def _bind(self, call: OnnxCall, result: Any) -> None:
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(call.outputs, results, strict=False):
            if isinstance(value, Node):
                self.values[name] = value
            else:
                self.constants[name] = value

    def value(self, name: str) -> Node:
        """A value of the network; constants become buffers."""
        if name not in self.values:
            if name not in self.constants:
                raise FileFormatError(f"the model reads {name!r}, which nothing computes")
            self.values[name] = self.buffer(name, self.constants[name])
        return self.values[name]

    def buffer(self, name: str, array: np.ndarray) -> Node:
        """An array as a tensor of the module."""
        path = self._free(_identifier(name))
        self.module.register_buffer(path, tensor(array))
        return self.graph.get_attr(path)

    def operand(self, call: OnnxCall, position: int) -> Node:
        """An operand of a node as a value."""
        if position >= len(call.inputs) or not call.inputs[position]:
            raise call.unsupported(f"operand {position} is absent")
        return self.value(call.inputs[position])

    def constant(self, call: OnnxCall, position: int, default: Any = None) -> Any:
        """An operand that must be known now, as an array; the default where it is absent."""
        if position >= len(call.inputs) or not call.inputs[position]:
            return default
        if call.inputs[position] not in self.constants:
            raise call.unsupported(f"operand {position} is computed by the network")
        return self.constants[call.inputs[position]]

    def is_constant(self, call: OnnxCall, position: int) -> bool:
        """Whether an operand is known now."""
        return position < len(call.inputs) and call.inputs[position] in self.constants

    def rank(self, call: OnnxCall, position: int) -> int:
        """Number of axes of an operand, whose sizes may be open."""
        return len(self._sizes(call, position))

    def shape(self, call: OnnxCall, position: int) -> tuple[int, ...]:
        """Shape of an operand."""
        sizes = tuple(d for d in self._sizes(call, position) if d is not None)
        if len(sizes) < self.rank(call, position):
            raise call.unsupported(f"the shape of {call.inputs[position]} is not known")
        return sizes

    def _sizes(self, call: OnnxCall, position: int) -> tuple[int | None, ...]:
        name = call.inputs[position]
        known = self.constants[name].shape if name in self.constants else self.shapes.get(name)
        if known is None:
            raise call.unsupported(f"the rank of {name} is not known")
        return known

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Node:
        """Add a function call, or a method call if given a name."""
        if isinstance(function, str):
            return self.graph.call_method(function, args, kwargs)
        return self.graph.call_function(function, args, kwargs)

    def layer(self, call: OnnxCall, module: nn.Module, x: Node) -> Node:
        """Add a layer under the path its weight is named after."""
        name = call.inputs[1] if len(call.inputs) > 1 else call.name
        path = re.sub(r"\.(weight|scale|gamma)$", "", name)
        parts = [re.sub(r"\W", "_", part) for part in path.split(".")]
        path = self._free(".".join(part or "_" for part in parts))
        self.module.add_submodule(path, module)
        return self.graph.call_module(path, (x,))

    def _free(self, path: str) -> str:
        """The path itself, or with a number if it is taken; the first part is no attribute."""
        first, *rest = path.split(".")
        taken = dict(self.module.named_children())
        if first not in taken and (hasattr(self.module, first) or not first):
            first = f"onnx_{first}"
        path = ".".join((first, *rest))
        candidate, count = path, 0
        while self._exists(candidate):
            count += 1
            candidate = f"{path}_{count}"
        return candidate

    def _exists(self, path: str) -> bool:
        """Whether a path is taken, or leads through a layer."""
        module: Any = self.module
        *parents, last = path.split(".")
        for part in parents:
            module = module._modules.get(part)
            if module is None:
                return False
            if type(module) is not nn.Module:
                return True
        return hasattr(module, last)


def tensor(array: np.ndarray) -> Tensor:
    """A torch tensor of an array; float64 and float16 become float32."""
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array).copy())


def _identifier(name: str) -> str:
    clean = re.sub(r"\W", "_", name) or "value"
    return f"v_{clean}" if clean[0].isdigit() else clean
