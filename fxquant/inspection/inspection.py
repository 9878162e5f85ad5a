"""inspect: everything there is to know about a quantized network, gathered once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError
from fxquant.inspection.advice import Measured, advice, float_remedy, overall
from fxquant.inspection.branches import Branches, linear_branches
from fxquant.inspection.device import KernelTime, MemoryMap, Profiled
from fxquant.inspection.facts import NodeFacts, node_facts
from fxquant.inspection.histogram import Histogram
from fxquant.inspection.measure import SAMPLES, Measurement, Measurements, measure
from fxquant.inspection.timing import Timing, interleaved
from fxquant.ir import meta
from fxquant.ir.units import Unit, units
from fxquant.model import Quantized

logger = logging.getLogger("fxquant")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """An operator or input of the network.

    Attributes:
        fact: What it is.
        measured: Errors and histograms; None if nothing was measured.
        weight: Histogram of its weight's codes, None if it has none.
        suggestions: What would improve it, the most promising first.
        kernels: The kernel calls it compiles to; empty if it was not timed.
    """

    fact: NodeFacts
    measured: Measurement | None
    weight: Histogram | None
    suggestions: tuple[str, ...]
    kernels: tuple[KernelTime, ...]

    @property
    def milliseconds(self) -> float:
        """Time of its kernels."""
        return sum(k.milliseconds for k in self.kernels)


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What `fxquant.inspect` found. Print it, or `write` it as an HTML page.

    Attributes:
        layers: Inputs and operators, in execution order.
        units: The Basic-Units.
        provenance: Versions, configuration and solver.
        with_model: Whether the float model was there, so that weight errors are measured.
        timings: Latency of whole networks by name.
        memory: Static memory plan of the compiled network.
        overall: Advice on the network as a whole, or "".
        branches: Sums of linear branches that one convolution could compute.
    """

    layers: tuple[Layer, ...]
    units: tuple[Unit, ...]
    provenance: Mapping[str, Any]
    with_model: bool
    timings: Mapping[str, Timing]
    memory: MemoryMap | None
    overall: str
    branches: tuple[Branches, ...]

    @property
    def measured(self) -> bool:
        """Whether errors were measured."""
        return any(layer.measured is not None for layer in self.layers)

    @property
    def islands(self) -> tuple[Layer, ...]:
        """Operators that stay in float."""
        return tuple(layer for layer in self.layers if layer.fact.island)

    @property
    def weakest(self) -> tuple[Layer, ...]:
        """Measured integer operators, the lowest isolated signal-to-noise ratio first."""
        known = [x for x in self.layers if x.measured is not None and not x.fact.float_reason]
        return tuple(sorted(known, key=_isolated))

    def html(self) -> str:
        """The report as one self-contained page, without scripts."""
        from fxquant.inspection.html import render

        return render(self)

    def write(self, path: str | Path) -> Path:
        """Write the HTML page and return its path; missing folders are made."""
        destination = Path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text(self.html(), encoding="utf-8")
        logger.info("wrote report %s", destination)
        return destination

    def __str__(self) -> str:
        rows = [("node", "operator", "weight", "result", "isolated", "cumulative", "suggestion")]
        for layer in self.layers:
            fact, errors = layer.fact, layer.measured
            rows.append((
                fact.node, fact.operator, f"w{fact.weight.bits}" if fact.weight else "",
                fact.grid[0], f"{errors.isolated.sqnr:.1f} dB" if errors else "",
                f"{errors.cumulative.sqnr:.1f} dB" if errors else "",
                next(iter(layer.suggestions), ""),
            ))  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)


def inspect(
    quantized: Quantized,
    data: Any = None,
    compiled: Callable[..., Any] | None = None,
    model: Any = None,
    samples: int = SAMPLES,
) -> Inspection:
    """Look into a quantized network.

    Args:
        quantized: From `fxquant.convert`.
        data: Inputs to measure per-layer errors and histograms on, as in `fxquant.calibrate`; None
            leaves them out.
        compiled: The compiled network: it is timed. From `tvm_backend.compile` it also shows its
            memory plan and the time of every kernel; any other callable on the inputs will do.
        model: The float model: errors then include those of the weights, and its latency is
            measured next to the compiled network's.
        samples: How many inputs to measure errors on at most.

    Raises:
        CalibrationError: The data is empty, or the network cannot run it.
        ConfigError: `model` is not the one that was quantized, or an argument is of a wrong type.
    """
    if not isinstance(quantized, Quantized):
        raise ConfigError(
            f"inspect got a {type(quantized).__name__}", remedy="pass what fxquant.convert returned"
        )
    if compiled is not None and not callable(compiled):
        raise ConfigError(
            f"the compiled network is {compiled!r}",
            where="compiled",
            remedy="pass what tvm_backend.compile returned, or a function of the inputs",
        )
    measured = Measurements({}, {}) if data is None else measure(quantized, data, model, samples)
    kernels: Sequence[KernelTime] = ()
    memory, timings = None, {}
    if compiled is not None:
        inputs = _inputs(quantized)
        timings = _timings(inputs, compiled, model)
        if isinstance(compiled, Profiled):
            kernels, memory = compiled.profile(*inputs), MemoryMap.of(compiled.memory_map())
    facts = {f.node: f for f in node_facts(quantized)}
    solver = str(quantized.provenance.get("solver", ""))
    return Inspection(
        tuple(_layer(f, facts, measured, solver, kernels) for f in facts.values()),
        units(quantized.calibrated), quantized.provenance, model is not None, timings, memory,
        overall(list(measured.values.values()), solver), linear_branches(quantized.calibrated),
    )  # fmt: skip


def report(
    quantized: Quantized,
    path: str | Path,
    data: Any = None,
    compiled: Callable[..., Any] | None = None,
    model: Any = None,
) -> Path:
    """Write the HTML report: `inspect(...)`, written to `path`.

    Args:
        quantized: As in `inspect`.
        path: The file to write; missing folders are made.
        data: As in `inspect`.
        compiled: As in `inspect`.
        model: As in `inspect`.

    Returns:
        The path written.

    Raises:
        CalibrationError: The data is empty.
        ConfigError: `model` is not the one that was quantized.
    """
    return inspect(quantized, data, compiled, model).write(path)


def _isolated(layer: Layer) -> float:
    assert layer.measured is not None
    return layer.measured.isolated.sqnr


def _layer(
    fact: NodeFacts,
    facts: Mapping[str, NodeFacts],
    measured: Measurements,
    solver: str,
    kernels: Sequence[KernelTime],
) -> Layer:
    measurement = measured.values.get(fact.node)
    suggestions: tuple[str, ...] = ()
    if remedy := float_remedy(fact):
        suggestions = (remedy,)
    elif measurement is not None:
        owners = dict.fromkeys(facts[s].owner for s in fact.sources)
        operands = [Measured(facts[o], measured.values[o]) for o in owners if o in measured.values]
        suggestions = advice(Measured(fact, measurement), operands, solver)
    weight = fact.weight.histogram(measured.weights.get(fact.node)) if fact.weight else None
    own = tuple(k for k in kernels if _layer_of(k.node, facts) == fact.node)
    return Layer(fact, measurement, weight, suggestions, own)


def _layer_of(node: str, facts: Mapping[str, NodeFacts]) -> str:
    """The layer of a node of the INTEGER graph: `head` for `head_accumulate`, `x_quantize`: `x`."""
    return node if node in facts else node.rpartition("_")[0]


def _inputs(quantized: Quantized) -> list[Tensor]:
    """Random inputs of the compiled shape."""
    nodes = [n for n in quantized.calibrated.graph.nodes if n.op == "placeholder"]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(meta.shape_of(n), generator=generator) for n in nodes]


@torch.no_grad()
def _timings(
    inputs: Sequence[Tensor], compiled: Callable[..., Any], model: Any
) -> dict[str, Timing]:
    """The compiled network, and next to it the float model if there is one."""
    candidates: dict[str, Callable[[], object]] = {"compiled": lambda: compiled(*inputs)}
    if isinstance(model, nn.Module):
        candidates["float32 torch"] = lambda: model(*inputs)
    return interleaved(candidates)
