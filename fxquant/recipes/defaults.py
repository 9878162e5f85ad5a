"""The default recipe of each precision: the best one measured (docs/experiments.md)."""

from __future__ import annotations

from math import prod

from torch.fx import GraphModule

from fxquant.config import Config, OpConfig
from fxquant.ir import meta
from fxquant.solvers import (
    GPTQ,
    UWC,
    ActivationEqualization,
    NetworkTuning,
    Solver,
)
from fxquant.solvers.equalization import Step

_FINE = 6  # bits from which on a value makes little error
_ROWS = 100_000  # of a layer's inputs: more than GPTQ takes by itself
_SMALL = 64 * 64  # pixels of images up to which the whole network is trained


def default_steps(config: Config, pixels: int) -> tuple[Step, ...]:
    """The steps used when none are named.

    Error-compensated codes always. Channels are equalized before, which moves error from the
    activations to the weights, unless narrow weights make the error. Where only weights are narrow
    and have 4 bits or more, training does not help; narrower ones, and narrow activations, are then
    trained unit by unit. Networks for small images are at last trained as a whole; those for large
    ones learn from a few hundred images, in minutes, nothing that holds for others.

    Args:
        config: The configuration.
        pixels: Of the largest input; see `pixels_of`.
    """
    weights, activations = narrowest(config)
    trained: tuple[Solver, ...] = ()
    if weights < 4 or activations < _FINE:
        trained = (UWC(), NetworkTuning()) if pixels <= _SMALL else (UWC(),)
    equalized = (ActivationEqualization(),) if weights >= min(activations, _FINE) else ()
    return (*equalized, GPTQ(rows=_ROWS), *trained)


def pixels_of(gm: GraphModule) -> int:
    """Positions of the largest input of a network."""
    shapes = [meta.shape_of(n) for n in gm.graph.nodes if n.op == "placeholder"]
    return max((prod(shape[2:]) for shape in shapes), default=1)


def narrowest(config: Config) -> tuple[int, int]:
    """Smallest number of bits of a weight and of an activation; 8 if nothing is quantized."""
    rules = (config.default, *config.types.values(), *config.patterns.values())
    chosen: list[OpConfig] = [c for c in (*rules, *config.names.values()) if c is not None]
    return (
        min((c.weight_bits for c in chosen), default=8),
        min((c.activation_bits for c in chosen), default=8),
    )
