"""One run of the captured graph on the example inputs: what the graph itself does not say.

Shapes of tensors, values of everything else, which operators write into their operands, and what
does not depend on the inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map_only

from fxquant.errors import CaptureError
from fxquant.ir.frontend.capture import source_line


class TensorInfo:
    """Shape and dtype standing for a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype


class Recorder(Interpreter):
    """Runs the captured graph once.

    Attributes:
        values: The result of every node, tensors as `TensorInfo`.
        overwritten: For every node that writes into an operand, the earlier nodes which are that
            very tensor and are read later: they stand for the node's result from there on.
        constants: Results of calls that read nothing but parameters, sizes and each other (grids of
            anchors, standardized weights), copied; all the same in every call and finite.
    """

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # messages say where already
        self.values: dict[Node, Any] = {}
        self.overwritten: dict[Node, tuple[Node, ...]] = {}
        self.constants: dict[Node, Any] = {}
        self._order = {n: i for i, n in enumerate(gm.graph.nodes)}
        self._own: dict[str, Tensor] = {}  # parameters and buffers by name

    def run_node(self, n: Node) -> Any:
        """Run a node and look for operands that changed by it."""
        operands = _tensors([self.env.get(a) for a in n.all_input_nodes])
        versions = [t._version for t in operands]
        random = torch.get_rng_state() if self._reads_constants(n) else None
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            self._own[str(n.target)] = value
        changed = [t for t, old in zip(operands, versions, strict=True) if t._version != old]
        if changed:
            self.overwritten[n] = self._aliases(n, changed, value)
        self.values[n] = _abstract(value)
        if random is not None and torch.equal(random, torch.get_rng_state()) and _is_finite(value):
            self.constants[n] = tree_map_only(Tensor, torch.clone, value)
        return value

    def _reads_constants(self, n: Node) -> bool:
        """Whether a call reads no input of the network, nor what is computed from one."""
        return n.op in ("call_function", "call_method") and all(
            s.op == "get_attr" or s in self.constants or not has_tensor(self.values[s])
            for s in n.all_input_nodes
        )

    def _aliases(self, n: Node, changed: list[Tensor], result: Any) -> tuple[Node, ...]:
        """Earlier nodes that are the changed tensor and are read behind `n`.

        Raises:
            CaptureError: What was changed is a parameter, or part of a value read later.
        """

        def touched(value: Any) -> bool:
            return any(_overlap(t, c) for t in _tensors(value) for c in changed)

        own = [name for name, value in self._own.items() if touched(value)]
        if own:
            raise CaptureError(
                f"the model changes its parameter or buffer {own[0]} while it runs",
                where=source_line(n) or n.name,
                why="every call would see another network",
                remedy="compute a new tensor instead; call model.eval() before torch.export.export",
            )
        found = [
            node
            for node, value in self.env.items()
            if any(self._order[u] > self._order[n] for u in node.users) and touched(value)
        ]
        for node in found:
            value = self.env[node]
            whole = isinstance(value, Tensor) and isinstance(result, Tensor)
            if not (whole and value.is_set_to(result)):
                raise CaptureError(
                    f"{n.name} changes part of a tensor in place, which is read later "
                    f"as {node.name}",
                    where=source_line(n) or n.name,
                    why="values of a graph do not share memory",
                    remedy="compute a new tensor instead, e.g. with torch.where or torch.cat",
                )
        return tuple(found)


def _is_finite(value: Any) -> bool:
    """Whether a result is finite tensors and nothing else."""
    leaves = tree_leaves(value)
    finite = all(isinstance(t, Tensor) and bool(torch.isfinite(t).all()) for t in leaves)
    return bool(leaves) and finite


def _tensors(value: Any) -> list[Tensor]:
    """Tensors whose changes can be seen; those made in inference mode cannot change here."""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor) and not t.is_inference()]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have memory in common."""
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() or not a.numel():
        return False
    if a.dtype != b.dtype or a.is_set_to(b):
        return True
    cells = torch.arange(a.untyped_storage().nbytes() // a.element_size())
    places = [cells.as_strided(t.shape, t.stride(), t.storage_offset()).flatten() for t in (a, b)]
    return bool(torch.isin(*places).any())


def _abstract(value: Any) -> Any:
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, Tensor):
        return TensorInfo(value)
    if isinstance(value, tuple | list):
        return tuple(_abstract(v) for v in value)
    return value


def has_tensor(value: Any) -> bool:
    """Whether a recorded value is or contains a tensor."""
    if isinstance(value, tuple):
        return any(has_tensor(v) for v in value)
    return isinstance(value, TensorInfo)
