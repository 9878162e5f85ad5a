"""INTEGER graph -> Program: every node becomes the kernels its emitter makes.

No operator is treated here; `emit/table.py` says who makes which kernel. What is decided here is
the order of execution and which values share memory: a move whose result has every element where
the source has it is a view.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxquant.targets import Target
from tvm_backend.arithmetic import spell_alike
from tvm_backend.call import Call, Value, offsets
from tvm_backend.emit.axis_map import axis_map_kernel, identity
from tvm_backend.emit.border import float_border
from tvm_backend.emit.table import KERNELS, MOVES
from tvm_backend.graph_view import bind, complete_shapes, fold_constants, nodes_in, shape_of
from tvm_backend.islands import IslandNodes, island_module, island_nodes, partition
from tvm_backend.kernel import Kernel
from tvm_backend.layout import Flat
from tvm_backend.layouts import assign, flat
from tvm_backend.legalize import legalize
from tvm_backend.program import FloatBorder, Island, Program, Step, plain_containers

# Arguments of reference operators that are activations; all others are parameters.
_ACTIVATIONS = ("x", "a", "b", "acc", "tensors", "residual")


def lower(
    graph_module: GraphModule,
    target: Target,
    progress: Callable[[str], None] | None = None,
    winograd: bool = True,
) -> Program:
    """Lower a graph.

    Args:
        graph_module: INTEGER graph.
        target: The device.
        progress: Called with the name of every node that is lowered.
        winograd: Whether the cost model may choose Winograd kernels.

    Raises:
        UnsupportedError: Some nodes cannot be compiled.
    """
    complete_shapes(graph_module)
    return _Lowering(graph_module, target, progress or (lambda _: None), winograd).run()


class _Lowering:
    """State of one lowering: the steps so far and where every value lies."""

    def __init__(
        self,
        graph_module: GraphModule,
        target: Target,
        progress: Callable[[str], None],
        winograd: bool,
    ) -> None:
        self.graph_module, self.target, self.progress = graph_module, target, progress
        self.winograd = winograd
        self.known = fold_constants(graph_module)
        spell_alike(graph_module, self.known)
        floats = island_nodes(graph_module, self.known)
        self.islands = partition(graph_module, floats, self.known)
        legalize(graph_module, self.islands, self.known)
        self.steps: list[Step | Island] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.borders: dict[str, FloatBorder] = {}
        self.owner: dict[Node, str] = {}  # the value that holds a node's elements
        self.inside = {n for island in self.islands for n in island.nodes}
        self.made = {n: i for i in self.islands for n in i.outputs}
        visible = [n for n in graph_module.graph.nodes if n.op != "output" and "shape" in n.meta]
        self.value = assign(
            (n for n in visible if n not in self.known and self._is_value(n)), self.known, target
        )

    def _is_value(self, node: Node) -> bool:
        return node not in self.inside or node in self.made

    def run(self) -> Program:
        """Lower everything."""
        nodes = list(self.graph_module.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        for node in inputs:
            self._own(node, flat(node))
        for unit in self._ordered(nodes):
            if isinstance(unit, IslandNodes):
                self._island(unit)
            else:
                self.progress(unit.name)
                self._call(unit)
        results = nodes[-1].args[0]
        shapes = tuple(shape_of(n) for n in nodes_in(results))
        outputs = map_arg(results, self._result)
        return Program(
            self.target, tuple(self.steps), self.values, self.constants,
            tuple(n.name for n in inputs), plain_containers(outputs), shapes, self.borders,
        )  # fmt: skip

    def _ordered(self, nodes: list[Node]) -> list[Node | IslandNodes]:
        """Integer nodes and whole islands so that everything follows what it reads."""
        unit_of: dict[Node, Node | IslandNodes] = {n: i for i in self.islands for n in i.nodes}
        units: dict[Node | IslandNodes, set[Any]] = {}
        position: dict[Node | IslandNodes, int] = {}
        for index, node in enumerate(nodes):
            if node.op in ("placeholder", "output") or node in self.known:
                continue
            unit = unit_of.setdefault(node, node)
            position[unit] = index
            sources = (unit_of.get(s) for s in nodes_in((node.args, node.kwargs)))
            units.setdefault(unit, set()).update(s for s in sources if s not in (None, unit))
        for island in self.islands:  # helpers are nodes of other islands
            units[island].update(unit_of[s] for s in island.inputs if s in unit_of)
        readers: dict[Any, list[Any]] = {}
        for unit, sources in units.items():
            for source in sources:
                readers.setdefault(source, []).append(unit)
        missing = {unit: len(sources) for unit, sources in units.items()}
        ready = [(position[u], u) for u, count in missing.items() if count == 0]
        heapq.heapify(ready)
        ordered = []
        while ready:
            _, unit = heapq.heappop(ready)
            ordered.append(unit)
            for reader in readers.get(unit, ()):
                missing[reader] -= 1
                if missing[reader] == 0:
                    heapq.heappush(ready, (position[reader], reader))
        return ordered

    def _own(self, node: Node, value: Value) -> None:
        """Give a node's value memory of its own."""
        self.values[value.name] = value
        self.owner[node] = value.name

    def _island(self, island: IslandNodes) -> None:
        if not island.outputs:  # all of it is computed again by those who read it
            return
        name = f"float_{island.nodes[0].name}"
        module = island_module(self.graph_module, island, self.known)
        inputs = tuple(self.owner[n] for n in island.inputs)
        for node in island.outputs:
            self._own(node, self.value[node])
        self.steps.append(Island(name, module, inputs, tuple(n.name for n in island.outputs)))

    def _call(self, node: Node) -> None:
        bound = bind(node)
        operands = [n for name in _ACTIVATIONS for n in nodes_in(bound.get(name))]
        inputs = [self._operand(n) for n in operands]
        output = self.value[node]
        others = {
            k: v for k, v in bound.items() if k not in _ACTIVATIONS or isinstance(v, (int, float))
        }
        tensors = {k: self.known[v].numpy() for k, v in others.items() if isinstance(v, Node)}
        numbers = {k: v for k, v in others.items() if not isinstance(v, Node)}
        if node.target in MOVES and _is_view(node.target, inputs[0], output, numbers):
            self.owner[node] = self._owner_name(operands[0])
            return
        call = Call(node.name, tuple(inputs), tensors, numbers, output, self.target, self.winograd)
        kernels = KERNELS[node.target](call)  # type: ignore[index]
        border = float_border(call, node.target)
        if border is not None:
            self.borders[output.name] = border
        weights = tensors["weight"].size if "weight" in tensors else 0
        self._append(node, kernels, tuple(self._owner_name(n) for n in operands), output, weights)

    def _append(
        self, node: Node, kernels: tuple[Kernel, ...], inputs: tuple[str, ...], output: Value,
        weights: int = 0,
    ) -> None:  # fmt: skip
        """Add a chain of kernels, the last of which holds the weights."""
        for i, kernel in enumerate(kernels[:-1]):
            name = f"{node.name}_part{i}"
            self.values[name] = Value(name, (kernel.output.size,), kernel.output)
            self.steps.append(Step(node.name, kernel, inputs, name))
            inputs = (name, *inputs[1:])
        kernel = kernels[-1]
        inputs = inputs[: len(kernel.inputs)]
        self.steps.append(Step(node.name, kernel, inputs, output.name, weights))
        self._own(node, output)

    def _owner_name(self, node: Node) -> str:
        return self.owner[node] if node not in self.known else f"{node.name}_constant"

    def _operand(self, node: Node) -> Value:
        """An activation operand as kernels want it."""
        if node in self.known:
            return self._constant(node)
        value = self.value[node]
        if node.op == "placeholder" and value.storage != self.values[self.owner[node]].storage:
            self._encode(node, value)
        return value

    def _encode(self, node: Node, value: Value) -> None:
        """Bring a network input of codes (or int32) to the target's storage, once."""
        plain = flat(node)
        stored = Value(f"{node.name}_stored", value.shape, value.storage, value.fill)
        maps = [identity(extent) for extent in value.shape]
        kernel = axis_map_kernel("encode", plain, stored, maps, self.target, delta=stored.offset)
        self._append(node, (kernel,), (plain.name,), stored)

    def _constant(self, node: Node) -> Value:
        """A constant activation, packed at compile time."""
        tensor = self.known[node]
        node.meta.setdefault("shape", tuple(tensor.shape))
        node.meta.setdefault("dtype", tensor.dtype)
        plain = assign([node], self.known, self.target)[node]
        value = Value(f"{node.name}_constant", plain.shape, plain.storage, plain.fill)
        array = np.zeros(value.storage.size, value.storage.dtype)
        plain_codes = tensor.numpy().astype(np.int64) if value.offset else tensor.numpy()
        array[offsets(value).reshape(-1)] = (plain_codes + value.offset).reshape(-1)
        self.values[value.name], self.constants[value.name] = value, array
        return value

    def _result(self, node: Node) -> Any:
        """Name of the value a network output is returned from: row-major, plain codes."""
        if node in self.known:
            value = self._constant(node)
        else:
            name = self.owner[node]
            value = self.value[node] if node.op != "placeholder" else self.values[name]
            value = Value(name, value.shape, value.storage, value.fill)
        if isinstance(value.storage, Flat) and not value.offset:
            return value.name
        plain = flat(node)
        plain = Value(f"{node.name}_result", plain.shape, plain.storage)
        if plain.name not in self.values:
            maps = [identity(extent) for extent in plain.shape]
            kernel = axis_map_kernel("decode", value, plain, maps, self.target, delta=-value.offset)
            self.values[plain.name] = plain
            self.steps.append(Step(node.name, kernel, (value.name,), plain.name))
        return plain.name


def _is_view(function: Any, source: Value, output: Value, numbers: dict[str, Any]) -> bool:
    """Whether the result of a move has every element where the source has it."""
    if source.storage.size != output.storage.size or source.storage.dtype != output.storage.dtype:
        return False
    if isinstance(source.storage, Flat) != isinstance(output.storage, Flat):
        return False
    same = source.storage == output.storage and source.fill == output.fill
    if not same and (_has_halo(source) or _has_halo(output)):
        return False
    positions = torch.from_numpy(offsets(source))
    if "value" in numbers:  # no position is negative: whatever is padded is no view
        numbers = {**numbers, "value": -1}
    moved = function(positions, **numbers).numpy()
    return moved.shape == output.shape and bool((moved == offsets(output)).all())


def _has_halo(value: Value) -> bool:
    return not isinstance(value.storage, Flat) and any(value.storage.halo)
