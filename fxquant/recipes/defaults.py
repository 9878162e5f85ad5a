"""The default recipe of each precision: the best one measured (docs/results.md)."""

from __future__ import annotations

from fxquant.config import Config, OpConfig
from fxquant.solvers import GPTQ, UWC, ActivationEqualization, Equalization, Solver

_TRAINED_BELOW = 6  # bits


def default_steps(config: Config) -> tuple[Solver | Equalization, ...]:
    """The steps used when none are named.

    Error-compensated codes always. Channels are equalized before, which moves error from the
    activations to the weights, unless narrow weights make the error. Below 6 bits everything is
    then trained unit by unit.
    """
    weights, activations = narrowest(config)
    trained = min(weights, activations) < _TRAINED_BELOW
    equalized = not trained or weights >= activations
    first = (ActivationEqualization(),) if equalized else ()
    return (*first, GPTQ(), UWC()) if trained else (*first, GPTQ())


def narrowest(config: Config) -> tuple[int, int]:
    """Smallest number of bits of a weight and of an activation; 8 if nothing is quantized."""
    rules = (config.default, *config.types.values(), *config.patterns.values())
    chosen: list[OpConfig] = [c for c in (*rules, *config.names.values()) if c is not None]
    return (
        min((c.weight_bits for c in chosen), default=8),
        min((c.activation_bits for c in chosen), default=8),
    )
