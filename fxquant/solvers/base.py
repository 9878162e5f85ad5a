"""What solvers get and what they give back. Solvers never see the model, only these records.

A solver is one of two things, by the region it works on:

* `LayerSolver`: one weighted layer at a time, in execution order, on the inputs it has under the
  quantized prefix; may also choose the grid of each value as it is produced.
* `UnitSolver`: all layers of a Basic-Unit (or of the network) at once.

Solvers compose as a tuple of steps. For every unit the steps run in order, and each starts from
what the step before left: `layer.start`, `layer.start_bias`, the grids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.ir.units import Unit
from fxquant.numerics.types import QParams, QTensor, QuantSpec
from fxquant.ops import OpDef
from fxquant.ops.conv import linear
from fxquant.solvers.activations import rows_of
from fxquant.solvers.program import Program

Chunks = Sequence[Sequence[Tensor]]  # chunks of samples, each a tuple of operands


@dataclass(frozen=True, slots=True)
class Layer:
    """One weighted operator.

    Attributes:
        node: Its node: function and static arguments.
        definition: Its OpDef.
        weight_name: Name of its weight; layers that share a weight share the name.
        weight: Float weight `[O, ...]`.
        bias: Float bias `[O]`, zeros where the model has none.
        weight_spec: Wanted weight grid.
        input: Grid of its input.
        output: Grid of its result, None if it delivers floats.
        start: Codes and scales to start from: round-to-nearest, or of the step before.
        start_bias: Bias to start from, `[O]`.
        frozen: The weight was solved with another layer that shares it and must not change.
    """

    node: Node
    definition: OpDef
    weight_name: str
    weight: Tensor
    bias: Tensor
    weight_spec: QuantSpec
    input: QParams
    output: QParams | None
    start: QTensor
    start_bias: Tensor
    frozen: bool = False

    def run(self, operands: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer before its clamp.

        Args:
            operands: Activation operands in the order of `definition.operands`.
            weight: `[O, ...]`.
            bias: `[O]` or None.
        """
        kwargs: dict[str, Any] = {**self.node.kwargs, "clamp": None}
        return self.definition.function(operands[0], weight, bias, *operands[1:], **kwargs)

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels in the result."""
        return -1 if self.node.target is linear else 1

    @property
    def groups(self) -> int:
        """Channel groups; 1 for a linear layer."""
        groups: Any = self.node.kwargs.get("groups", 1)
        return int(groups)


@dataclass(frozen=True, slots=True)
class LayerProblem:
    """A layer to be quantized.

    Attributes:
        layer: The layer.
        float_operands: Its operands under the float prefix, in chunks of samples.
        quantized_operands: The same under the quantized prefix, on their grids.
    """

    layer: Layer
    float_operands: Chunks
    quantized_operands: Chunks


@dataclass(frozen=True, slots=True)
class LayerSolution:
    """A solved layer.

    Attributes:
        weight: Codes and scales.
        bias: Float bias `[O]`; the driver rounds it to the int32 grid.
        losses: The objective over the iterations, if the solver iterates.
        note: What the report should say.
    """

    weight: QTensor
    bias: Tensor
    losses: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer that reads a value, itself or behind operators that keep its grid.

    Attributes:
        layer: The layer, not solved yet: its weights are `layer.start`.
        float_operand: Its `x` in the float network, in chunks of samples `[S, ...]`.
        operand: The same under the quantized prefix, `[S, ...]`, before the value is rounded.
    """

    layer: Layer
    float_operand: Sequence[Tensor]
    operand: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class ValueProblem:
    """A value whose grid may be chosen anew.

    Attributes:
        name: Node name.
        grid: Its present grid.
        finest: Smallest legal scale.
        float_value: The value in the float network, in chunks of samples `[S, ...]`.
        value: The same under the quantized prefix, `[S, ...]`, before it is rounded to its grid.
        readers: The layers that read it.
    """

    name: str
    grid: QParams
    finest: float
    float_value: Sequence[Tensor]
    value: Sequence[Tensor]
    readers: Sequence[Reader]


def _silent(_done: int, _total: int) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class UnitProblem:
    """A unit to be quantized.

    Attributes:
        unit: The region.
        program: Runs it.
        layers: Its weighted operators by node name, in execution order.
        grids: Grids that belong to values made inside the unit, by node name.
        finest: Smallest legal scale of each of them.
        fixed_grids: Grids of the values it reads from outside, by node name.
        float_inputs: By name, `[S, ...]`: its inputs in the float network.
        quantized_inputs: The same under the quantized prefix, `[S, ...]`.
        targets: Its results in the float network, by name, `[S, ...]`.
        samples: How many samples these hold; with axes folded into the first, S is a multiple.
        batch: The only number of samples the program can run at once, None if any will do.
        report: Takes the steps done and how many there are, now and then.
    """

    unit: Unit
    program: Program
    layers: Mapping[str, Layer]
    grids: Mapping[str, QParams]
    finest: Mapping[str, float]
    fixed_grids: Mapping[str, QParams]
    float_inputs: Mapping[str, Tensor]
    quantized_inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    samples: int
    batch: int | None = None
    report: Callable[[int, int], None] = _silent

    def rows_of(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Some samples of an input or a target, by their numbers."""
        return rows_of(x, chosen, self.samples)


@dataclass(frozen=True, slots=True)
class UnitSolution:
    """A solved unit.

    Attributes:
        weights: Codes and scales by weight name.
        biases: Float bias `[O]` of every layer, by node name.
        grids: Changed grids by node name.
        losses: The objective over the iterations.
        notes: What the report should say, by node name.
    """

    weights: Mapping[str, QTensor]
    biases: Mapping[str, Tensor]
    grids: Mapping[str, QParams] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


class Scope(Enum):
    """The region a `UnitSolver` reconstructs at once."""

    LAYER = "layer"
    UNIT = "unit"
    NETWORK = "network"


class LayerSolver(ABC):
    """Solves one layer after the other."""

    @abstractmethod
    def solve_layer(self, problem: LayerProblem, rng: torch.Generator) -> LayerSolution:
        """Codes, scales and bias of a layer; deterministic given `rng`."""

    def choose_grid(self, problem: ValueProblem) -> QParams:
        """The grid of a value; by default the one it has."""
        return problem.grid


class UnitSolver(ABC):
    """Solves all layers of a region together."""

    @property
    def scope(self) -> Scope:
        """The region; `Scope.UNIT` by default."""
        return Scope.UNIT

    @abstractmethod
    def solve_unit(self, problem: UnitProblem, rng: torch.Generator) -> UnitSolution:
        """Codes, scales, biases and grids of a region; deterministic given `rng`."""


Solver = LayerSolver | UnitSolver
