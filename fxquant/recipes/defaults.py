"""The default recipe of each precision: the best one measured (docs/results.md)."""

from __future__ import annotations

from fxquant.config import Config, OpConfig
from fxquant.solvers import (
    GPTQ,
    UWC,
    ActivationEqualization,
    Equalization,
    NetworkTuning,
    Solver,
)

_FINE = 6  # bits from which on a value makes little error
_ROWS = 100_000  # of a layer's inputs: more than GPTQ takes by itself


def default_steps(config: Config) -> tuple[Solver | Equalization, ...]:
    """The steps used when none are named.

    Error-compensated codes always. Channels are equalized before, which moves error from the
    activations to the weights, unless narrow weights make the error. Where only weights are narrow
    and have 4 bits or more, more data helps them further than training does; narrower ones, and
    narrow activations, are then trained unit by unit and, at last, all together.
    """
    weights, activations = narrowest(config)
    if activations >= _FINE and 4 <= weights < _FINE:
        return (GPTQ(rows=_ROWS),)
    trained = (UWC(), NetworkTuning()) if min(weights, activations) < _FINE else ()
    equalized = (ActivationEqualization(),) if not trained or weights >= activations else ()
    return (*equalized, GPTQ(), *trained)


def narrowest(config: Config) -> tuple[int, int]:
    """Smallest number of bits of a weight and of an activation; 8 if nothing is quantized."""
    rules = (config.default, *config.types.values(), *config.patterns.values())
    chosen: list[OpConfig] = [c for c in (*rules, *config.names.values()) if c is not None]
    return (
        min((c.weight_bits for c in chosen), default=8),
        min((c.activation_bits for c in chosen), default=8),
    )
