"""The products of one chain (or step) of a register tile, in the order that suits the idiom.

LLVM keeps much of the order in which operands are loaded, so it decides what registers must hold:

    held      activations of all pixels; each weight vector passes by once
    stepwise  a step's operands and one sum a chain of every accumulator: no operand outlives its
              step, however long the chains are
    pixelwise weights of the whole chain; activations pass by pixel after pixel
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm_backend.emit.conv_weights import WeightForm
from tvm_backend.macs import Mac
from tvm_backend.macs.base import StepMac
from tvm_backend.schedule.tiles import holds_activations
from tvm_backend.tvm_api import T

_SHORT = 2  # steps of a chain whose weights fit registers beside the accumulators


@dataclass(frozen=True, slots=True)
class WeightVectors:
    """Weights of consecutive steps of a channel block, loaded when first asked for.

    Attributes:
        mac: The idiom.
        form: How they lie in memory.
        buffer: Where.
        first: Element the first step's start with.
        vectors: Vectors of the block.
    """

    mac: Mac
    form: WeightForm
    buffer: Any
    first: Any
    vectors: int
    _loaded: dict[tuple[int, int], list[Any]] = field(default_factory=dict)

    def at(self, v: int, k: int) -> Any:
        """Those of vector v in step k."""
        shared = self.form.shared(v, self.vectors)  # these come out of one vector of memory
        if (shared.start, k) not in self._loaded:
            elements = self.mac.idiom.lanes * self.mac.idiom.reduction
            stored = k * self.form.stored(self.vectors) + shared.start // self.form.density
            self._loaded[shared.start, k] = self.form.load(
                self.mac, self.buffer, self.first + stored * elements, len(shared)
            )
        return self._loaded[shared.start, k][v - shared.start]


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations of consecutive steps of a tile.

    Attributes:
        groups: By group of pixels, by vector of channels (one entry if all multiply the same), by
            step.
    """

    groups: Sequence[Sequence[Sequence[Any]]]

    def bind(self, m: int, k: int) -> list[Any]:
        """Those of group m in step k, loaded now: one entry, or one a vector."""
        return [T.Bind(steps[k]) for steps in self.groups[m]]


def multiply(
    mac: Mac, acc: Any, activations: Activations, weights: WeightVectors, chain: range
) -> None:
    """Add the products of a chain of steps to the accumulators.

    Args:
        mac: The idiom.
        acc: Accumulators, `[groups * vectors]`.
        activations: Of all groups.
        weights: Of all vectors.
        chain: The steps.
    """
    if holds_activations(mac.idiom):
        _held(mac, acc, activations, weights, chain)
    elif isinstance(mac, StepMac) and len(chain) > _SHORT:
        _stepwise(mac, acc, activations, weights, chain)
    else:
        _pixelwise(mac, acc, activations, weights, chain)


def _held(
    mac: Mac, acc: Any, activations: Activations, weights: WeightVectors, chain: range
) -> None:
    groups = range(len(activations.groups))
    held = [[activations.bind(m, k) for k in chain] for m in groups]
    for v in range(weights.vectors):
        factors = [weights.at(v, k) for k in chain]
        for m in groups:
            _add(mac, acc, m * weights.vectors + v, [_of(step, v) for step in held[m]], factors)


def _pixelwise(
    mac: Mac, acc: Any, activations: Activations, weights: WeightVectors, chain: range
) -> None:
    kept = [[weights.at(v, k) for k in chain] for v in range(weights.vectors)]
    for m in range(len(activations.groups)):
        found = [activations.bind(m, k) for k in chain]
        for v, factors in enumerate(kept):
            _add(mac, acc, m * weights.vectors + v, [_of(step, v) for step in found], factors)


def _stepwise(
    mac: StepMac, acc: Any, activations: Activations, weights: WeightVectors, chain: range
) -> None:
    sums: dict[int, Any] = {}
    for k in chain:
        factors = [weights.at(v, k) for v in range(weights.vectors)]
        for m in range(len(activations.groups)):
            found = activations.bind(m, k)
            for v, factor in enumerate(factors):
                index = m * weights.vectors + v
                sums[index] = T.Bind(mac.extend(sums.get(index), _of(found, v), factor))
    for index, total in sums.items():
        T.buffer_store(acc, mac.finish(acc[index], total), [index])


def _of(found: Sequence[Any], v: int) -> Any:
    """The activations that vector v multiplies."""
    return found[v if len(found) > 1 else 0]


def _add(mac: Mac, acc: Any, index: int, found: Sequence[Any], factors: Sequence[Any]) -> None:
    T.buffer_store(acc, mac.multiply_accumulate(acc[index], found, factors), [index])
