"""The stages of the straight line and what must hold in each; `verify` runs after every pass."""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

from torch.fx import GraphModule, Node

from fxquant.errors import StageError
from fxquant.ir import meta
from fxquant.ops import Grid
from fxquant.ops.normalization import batch_norm


class Stage(Enum):
    """Where a graph is on the straight line."""

    FLOAT = "float"
    FUSED = "fused"
    ANNOTATED = "annotated"
    CALIBRATED = "calibrated"
    QDQ = "qdq"
    INTEGER = "integer"


def verify(gm: GraphModule, stage: Stage) -> None:
    """Check a graph against its stage's rules.

    Raises:
        StageError: A rule is broken; names the node.
    """
    gm.graph.lint()
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        if "shape" not in node.meta and node.users and not _several_results(node):
            _fail(node, stage, "has no recorded shape")
        if stage is Stage.FUSED and node.target is batch_norm and len(node.meta["shape"]) in (2, 4):
            _fail(node, stage, "is a batch norm that fusion should have folded")
        if stage in (Stage.ANNOTATED, Stage.CALIBRATED):
            _check_annotation(node, stage)
        if stage is Stage.CALIBRATED:
            value = meta.quant(node)
            if value is not None and value.qparams is None:
                _fail(node, stage, "has a spec but no quantization parameters")


def _several_results(node: Node) -> bool:
    return any(getattr(user.target, "__name__", "") == "getitem" for user in node.users)


def _check_annotation(node: Node, stage: Stage) -> None:
    if not node.op.startswith("call_") or meta.float_reason(node) is not None:
        return
    definition = meta.opdef(node)
    if definition is None:
        _fail(node, stage, "has no integer form and no reason to stay in float")
    bound = definition.bind(node)
    for name in definition.operands:
        operand = bound.get(name, ())
        items = operand if isinstance(operand, tuple | list) else (operand,)
        if not all(isinstance(item, Node) for item in items):
            _fail(node, stage, f"reads {operand!r} as {name}, which must be a value of the graph")
    if definition.grid is Grid.SHARED:
        own, shared = meta.quant(node), meta.quant(node.all_input_nodes[0])
        if own is None or shared is None or own.spec != shared.spec:
            _fail(node, stage, "must share the grid of its operand")


def _fail(node: Node, stage: Stage, what: str) -> NoReturn:
    raise StageError(
        f"{node.name} {what}",
        where=meta.place(node),
        why=f"rule of stage {stage.value}",
        remedy="this is a bug in the pass that ran last; please report it with the model",
    )
