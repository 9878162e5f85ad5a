"""Batches: their layout in memory, and their size.

Graphs captured by torch.export, or with sizes written out, fix the batch; so do results that do not
treat samples one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.samples import by_sample, dependents

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
    """The only batch size a graph can run, None if any will do."""
    batch = meta.shape_of(next(n for n in gm.graph.nodes if n.op == "placeholder"))[0]
    known = by_sample(gm, probing=True)
    if known is None:
        return batch
    own, results = dependents(gm.graph), gm.graph.output_node().all_input_nodes
    return None if all(n.name in known for n in results if n in own) else batch


def run_in_batches(
    graph: Graph,
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    batch: int | None,
    most: int = 0,
) -> Any:
    """Call a function with parts of its inputs, and put its results together.

    Args:
        graph: What the function runs.
        function: Treats samples one by one.
        inputs: `[N, ...]` each.
        batch: The only number of samples it takes, None if any will do.
        most: Samples to pass at once where any number will do; 0 for all.

    Raises:
        ConfigError: The inputs are no multiple of the batch size, or several batches would be
            needed for a result that has no samples.
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
    return _joined(graph.output_node().args[0], dependents(graph), parts)


def _joined(output: Any, own: set[Node], parts: Sequence[Any]) -> Any:
    """Results of several batches, nested like the output; constants are the same in all."""
    if isinstance(output, dict):
        return {k: _joined(v, own, [p[k] for p in parts]) for k, v in output.items()}
    if isinstance(output, tuple | list):
        return type(parts[0])(_joined(v, own, [p[i] for p in parts]) for i, v in enumerate(output))
    if not isinstance(output, Node) or output not in own:
        return parts[0]
    if parts[0].ndim == 0:
        raise ConfigError(
            f"{output.name} is one number for a whole batch",
            why=f"{len(parts)} batches are needed for inputs of this size",
            remedy="feed the batch size that the model was prepared with",
        )
    return torch.cat(list(parts))
