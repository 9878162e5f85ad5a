"""`--bits`: an average that is spread over the layers, or the bits of single layers."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fxquant.cli.output import show_progress
from fxquant.config import Config, OpConfig
from fxquant.errors import ConfigError
from fxquant.recipes import allocate_bits

HELP = (
    "an average number of weight bits, chosen layer by layer (4.5), or the bits of one module: "
    "NAME=4, NAME=4/8 (weights/activations), NAME=float; may be repeated"
)


@dataclass(frozen=True, slots=True)
class BitsOption:
    """One `--bits`.

    Attributes:
        average: Average over the layers; None for a rule.
        name: Module path of a rule.
        weights: Weight bits of a rule, None leaves the module in float.
        activations: Activation bits of a rule, None keeps those of the configuration.
    """

    average: float | None = None
    name: str = ""
    weights: int | None = None
    activations: int | None = None


def bits_option(text: str) -> BitsOption:
    """Parse one `--bits`."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return BitsOption(average=float(text))
    match = re.fullmatch(r"(.+)=(?:(\d{1,2})(?:/(\d{1,2}))?|float)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, NAME=BITS or NAME=float")
    weights, activations = (int(g) if g else None for g in match.group(2, 3))
    return BitsOption(None, match[1], weights, activations)


def with_bits(
    config: Config, options: list[BitsOption], model: Any, example: tuple[Tensor, ...]
) -> Config:
    """The configuration refined by all `--bits`.

    Raises:
        ConfigError: Two averages, or an average that cannot be reached.
    """
    averages = [o.average for o in options if o.average is not None]
    if len(averages) > 1:
        raise ConfigError("--bits has two averages", remedy="keep one")
    base = config.default or OpConfig()
    rules = {o.name: _rule(base, o) for o in options if o.average is None}
    config = config.with_rules(names=rules)
    if not averages:
        return config
    progress = show_progress()
    return allocate_bits(model, example, averages[0], config=config, progress=progress).config


def _rule(base: OpConfig, option: BitsOption) -> OpConfig | None:
    if option.weights is None:
        return None
    activations = option.activations or base.activation_bits
    return replace(base, weight_bits=option.weights, activation_bits=activations)
