"""Batches: their layout in memory, and their size.

Graphs captured by torch.export, or with sizes written out, fix the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxquant.errors import ConfigError
from fxquant.ir import meta

_CACHED = 8 << 20  # bytes of the largest value: more would be fetched from memory again and again
_MOST = 64  # samples


def samples_at_once(nodes: Iterable[Node]) -> int:
    """How many samples to run through operators at once so that their values stay in the cache."""
    return max(1, min(_MOST, _CACHED // max(map(bytes_per_sample, nodes), default=1)))


def bytes_per_sample(node: Node) -> int:
    """Size of a float32 value for one sample, at least 4."""
    shape = node.meta.get("shape", ())
    return 4 * max(1, torch.Size(shape).numel() // max(shape[0] if shape else 1, 1))


def channels_last(x: Tensor) -> Tensor:
    """Images with their channels innermost: convolutions on CPUs are several times faster so."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def fixed_batch(gm: GraphModule) -> int | None:
    """The only batch size a graph can run, None if any will do.

    Found by running the graph on meta tensors of twice the batch.
    """
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    batch = meta.shape_of(inputs[0])[0]
    doubled = [
        torch.empty(2 * batch, *meta.shape_of(n)[1:], dtype=meta.dtype_of(n), device="meta")
        for n in inputs
    ]
    try:
        with torch.no_grad():
            results = _MetaInterpreter(gm).run(*doubled)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return batch
    tensors: list[Tensor] = []
    _collect(results, tensors)
    return None if all(t.ndim > 0 and t.shape[0] % (2 * batch) == 0 for t in tensors) else batch


class _MetaInterpreter(Interpreter):
    """Reads parameters as meta tensors."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().get_attr(target, args, kwargs).to("meta")


def _collect(value: Any, into: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        into.append(value)
    elif isinstance(value, dict):
        _collect(list(value.values()), into)
    elif isinstance(value, tuple | list):
        for item in value:
            _collect(item, into)


def run_in_batches(
    function: Callable[..., Any], inputs: Sequence[Tensor], batch: int | None, most: int = 0
) -> Any:
    """Call a function with parts of its inputs, and put its results together.

    Args:
        function: Treats samples one by one.
        inputs: `[N, ...]` each.
        batch: The only number of samples it takes, None if any will do.
        most: Samples to pass at once where any number will do; 0 for all.

    Raises:
        ConfigError: The inputs are no multiple of the batch size.
    """
    size = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
    if batch is not None and size != batch and inputs and (size == 0 or size % batch):
        raise ConfigError(
            f"a batch of {size} cannot be run",
            why=f"the graph was captured for batches of {batch}, and {size} is no multiple of it",
            remedy=f"feed multiples of {batch}, or prepare with a batch of 1",
        )
    step = batch or most or size
    if size <= step:
        return function(*inputs)
    parts = [function(*(x[i : i + step] for x in inputs)) for i in range(0, size, step)]
    return _concatenated(parts)


def _concatenated(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {k: _concatenated([p[k] for p in parts]) for k in first}
    return type(first)(_concatenated(column) for column in zip(*parts, strict=True))
