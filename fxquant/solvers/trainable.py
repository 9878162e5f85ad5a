"""The trainable parameters of a region, and the region run with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from fxquant.numerics.types import SMALLEST_SCALE, QParams, QTensor
from fxquant.ops import Operand
from fxquant.solvers.base import Layer, UnitProblem, UnitSolution
from fxquant.solvers.fake_quantize import fake_quantize
from fxquant.solvers.rounding import Rounding
from fxquant.solvers.scale_search import smallest_scale

if TYPE_CHECKING:
    from fxquant.solvers.reconstruct import Training

_BIAS_PARTS = 64.0


@dataclass(slots=True)
class _Weight:
    """A weight in training; shared by all layers that use it.

    Attributes:
        layer: The first layer that uses it.
        scale: Start of the scale, `[O, 1, ...]`.
        floor: Smallest legal scale, same shape.
        ratio: Float weight in steps.
        variable: What the rounding trains.
        theta: Logarithm of the scale's change.
    """

    layer: Layer
    scale: Tensor
    floor: Tensor
    ratio: Tensor
    variable: Tensor
    theta: Tensor

    def real_scale(self) -> Tensor:
        return torch.maximum(self.scale * self.theta.exp(), self.floor)


class Trainable:
    """See the module docstring."""

    def __init__(
        self, problem: UnitProblem, rounding: Rounding, training: Training, rng: torch.Generator
    ) -> None:
        self.problem, self.rounding, self.training, self.rng = problem, rounding, training, rng
        self.weights: dict[str, _Weight] = {}
        self.fixed: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.bias_units: dict[str, Tensor] = {}
        for name, layer in problem.layers.items():
            unit = _range(layer.output) / _BIAS_PARTS if layer.output else layer.weight.std()
            self.bias_units[name] = torch.as_tensor(unit, dtype=torch.float32)
            self.biases[name] = torch.zeros_like(layer.start_bias)
            if layer.frozen:
                self.fixed[layer.weight_name] = layer.start.dequantize()
            elif layer.weight_name not in self.weights:
                self.weights[layer.weight_name] = self._weight(layer)
        self.phi = {name: torch.zeros(()) for name in problem.grids}
        self._leaves = [*self.biases.values(), *self.phi.values()]
        for weight in self.weights.values():
            self._leaves += [weight.variable, weight.theta]
        for leaf in self._leaves:
            leaf.requires_grad_()

    def _weight(self, layer: Layer) -> _Weight:
        shape = [-1] + [1] * (layer.weight.ndim - 1)
        scale = layer.start.qparams.scale.reshape(shape)
        floor = smallest_scale(layer.start_bias, layer.input, layer.output).float().reshape(shape)
        ratio = layer.weight / scale
        codes = layer.start.codes.float()
        variable = self.rounding.start(ratio, codes, layer.weight_spec.dtype, self.rng)
        return _Weight(layer, scale, floor, ratio, variable.clone(), torch.zeros_like(scale))

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        t = self.training
        weights = self.weights.values()
        groups = [
            ([w.variable for w in weights], t.code_rate),
            ([w.theta for w in weights], t.scale_rate),
            (list(self.biases.values()), t.bias_rate),
            (list(self.phi.values()), t.activation_rate),
        ]
        return [{"params": p, "lr": rate} for p, rate in groups if p and rate > 0]

    def run(self, inputs: Mapping[str, Tensor], hard: bool) -> dict[str, Tensor]:
        """The region's results.

        Args:
            inputs: By name, `[B, ...]`.
            hard: Round as the device does; else as the rounding trains.
        """
        real = dict(self.fixed)
        for name, w in self.weights.items():
            turn = self.rounding.hard if hard else self.rounding.codes
            codes = turn(w.ratio, w.variable, w.layer.weight_spec.dtype)
            real[name] = codes * w.real_scale()

        def parameters(node: Node) -> tuple[Tensor, Tensor]:
            layer = self.problem.layers[node.name]
            return real[layer.weight_name], self._bias(node.name)

        def on_grid(name: str, value: Tensor) -> Tensor:
            qparams = self.problem.grids.get(name) or self.problem.fixed_grids[name]
            grid = Operand.of(qparams)
            low, high = grid.qmin - grid.zero_point, grid.qmax - grid.zero_point
            rounded = fake_quantize(value, self._scale(name, qparams), low, high)
            if hard or self.training.drop == 0 or name not in self.phi:
                return rounded
            dropped = torch.rand(value.shape, generator=self.rng) < self.training.drop
            return torch.where(dropped, value, rounded)

        return self.problem.program.run(inputs, parameters, on_grid)

    def _bias(self, name: str) -> Tensor:
        return self.problem.layers[name].start_bias + self.biases[name] * self.bias_units[name]

    def _scale(self, name: str, qparams: QParams) -> Tensor:
        if name not in self.phi:
            return qparams.scale
        scale = qparams.scale * self.phi[name].exp()
        return scale.clamp(min=max(self.problem.finest[name], SMALLEST_SCALE * 2))

    def penalty(self, progress: float) -> Tensor | None:
        """Sum of the rounding's penalties."""
        terms = [self.rounding.penalty(w.variable, progress) for w in self.weights.values()]
        present = [t for t in terms if t is not None]
        return torch.stack(present).sum() if present else None

    def snapshot(self) -> list[Tensor]:
        """Copies of all parameters."""
        return [leaf.detach().clone() for leaf in self._leaves]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        """Back to a snapshot."""
        for leaf, value in zip(self._leaves, snapshot, strict=True):
            leaf.copy_(value)

    @torch.no_grad()
    def solution(self, losses: tuple[float, ...]) -> UnitSolution:
        """The parameters as integers, scales and biases."""
        weights = {}
        for name, w in self.weights.items():
            spec = w.layer.weight_spec
            codes = self.rounding.hard(w.ratio, w.variable, spec.dtype).to(torch.int8)
            scale = w.real_scale().flatten()
            zero_point = torch.zeros(scale.shape, dtype=torch.int32)
            weights[name] = QTensor(codes, QParams(spec, scale.contiguous(), zero_point))
        grids = {
            name: QParams(q.spec, self._scale(name, q).detach(), q.zero_point)
            for name, q in self.problem.grids.items()
        }
        biases = {name: self._bias(name).detach().clone() for name in self.biases}
        return UnitSolution(weights, biases, grids, losses)


def _range(qparams: QParams) -> float:
    dtype = qparams.spec.dtype
    return float(qparams.scale) * (dtype.qmax - dtype.qmin)
