"""The default recipe of each precision: the best one measured (docs/results.md)."""

from __future__ import annotations

from fxquant.config import Config, OpConfig
from fxquant.solvers import GPTQ, UWC, ActivationEqualization, Equalization, Solver

_TRAINED_BELOW = 6  # bits


def default_steps(config: Config) -> tuple[Solver | Equalization, ...]:
    """The steps used when none are named.

    From 6 bits on, equalized channels and error-compensated codes; below, error-compensated codes
    that are then trained unit by unit.
    """
    if narrowest(config) >= _TRAINED_BELOW:
        return ActivationEqualization(), GPTQ()
    return GPTQ(), UWC()


def narrowest(config: Config) -> int:
    """Smallest number of bits in a configuration; 8 if it quantizes nothing."""
    rules = (config.default, *config.types.values(), *config.patterns.values())
    chosen: list[OpConfig] = [c for c in (*rules, *config.names.values()) if c is not None]
    return min((min(c.weight_bits, c.activation_bits) for c in chosen), default=8)
