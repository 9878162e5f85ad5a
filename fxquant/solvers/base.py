"""What a solver gets and what it gives back. Solvers never see the model, only these records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.ir.units import Unit
from fxquant.numerics.types import QParams, QTensor, QuantSpec
from fxquant.ops import OpDef


@dataclass(frozen=True, slots=True)
class Layer:
    """One weighted operator of a unit.

    Attributes:
        node: Its node: function and static arguments.
        definition: Its OpDef.
        weight: Float weight `[O, ...]`.
        bias: Float bias `[O]`, zeros where the model has none.
        weight_spec: Wanted weight grid.
        input: Grid of its input.
        output: Grid of its result, None if it delivers floats.
    """

    node: Node
    definition: OpDef
    weight: Tensor
    bias: Tensor
    weight_spec: QuantSpec
    input: QParams
    output: QParams | None

    def run(self, operands: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        """The layer before its clamp.

        Args:
            operands: Activation operands in the order of `definition.operands`.
            weight: `[O, ...]`.
            bias: `[O]`.
        """
        kwargs: dict[str, Any] = {**self.node.kwargs, "clamp": None}
        return self.definition.function(operands[0], weight, bias, *operands[1:], **kwargs)


@dataclass(frozen=True, slots=True)
class UnitProblem:
    """A unit to be quantized.

    Attributes:
        unit: The region.
        layers: Its weighted operators by node name, in execution order.
        float_inputs: For every layer, its operands under the float prefix, in chunks of samples.
        quantized_inputs: The same under the quantized prefix.
    """

    unit: Unit
    layers: Mapping[str, Layer]
    float_inputs: Mapping[str, Sequence[Sequence[Tensor]]]
    quantized_inputs: Mapping[str, Sequence[Sequence[Tensor]]]


@dataclass(frozen=True, slots=True)
class UnitSolution:
    """The solver's answer.

    Attributes:
        weights: Codes and grid of every layer's weight, by node name.
        biases: Float bias of every layer, by node name.
        activations: Changed grids of values, by node name.
        losses: The objective over the iterations, if the solver iterates.
        notes: What the report should say, by node name.
    """

    weights: Mapping[str, QTensor]
    biases: Mapping[str, Tensor]
    activations: Mapping[str, QParams] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


class Solver(Protocol):
    """Turns a float unit into integer codes and grids."""

    def solve(self, problem: UnitProblem, rng: torch.Generator) -> UnitSolution:
        """Solve one unit; deterministic given `rng`."""
        ...
