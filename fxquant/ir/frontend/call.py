"""One source call as its handler sees it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Node

from fxquant.ir.build import GraphBuilder
from fxquant.ir.meta import shape_of
from fxquant.ops import shape as shape_ops

_ALIASES = {"sym_size": "size"}
# Names of arguments that torch takes besides its own (NumPy's), and those of aten.
_ARGUMENT_ALIASES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input",
                     "x2": "other", "self": "input", "train": "training"}  # fmt: skip


def canonical_name(node: Node) -> str:
    """The bare operator name of a function, method or aten overload, underscore dropped."""
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
    elif hasattr(target, "_schema"):
        name = target._schema.name.split("::")[-1]
    else:
        name = getattr(target, "__name__", str(target))
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return _ALIASES.get(name, name)


def handled(
    handler: Callable[..., Any], call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a handler makes of a call; NotImplemented where it does not know this form of it."""
    named = {_ARGUMENT_ALIASES.get(name, name): value for name, value in kwargs.items()}
    try:
        bound = inspect.signature(handler).bind(call, *args, **named)
    except TypeError:
        return NotImplemented
    return handler(*bound.args, **bound.kwargs)


class Call:
    """What a handler may use: the new graph, and the recorded result of the source call.

    Handlers get the source call's arguments by position or keyword, named as in torch; they
    return the new value, or NotImplemented to leave the call in float.
    """

    def __init__(self, builder: GraphBuilder, recorded: Any, name: str, place: str) -> None:
        self.builder, self.recorded, self.name, self.place = builder, recorded, name, place

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Recorded shape of the single tensor result."""
        return self.recorded.shape

    def emit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Add a dialect call."""
        return self.builder.call(function, args, kwargs, self.name)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a value."""
        return shape_of(node)

    def reshape(self, x: Node, shape: tuple[int, ...]) -> Node:
        """Reshape to a traced shape; its leading axis is the batch, or has others folded in."""
        current = shape_of(x)
        if current == tuple(shape):
            return x
        shape = shape_ops.for_any_batch(current, tuple(shape))
        return self.emit(shape_ops.reshape, x, shape=shape)
