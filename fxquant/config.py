"""What to quantize and how finely: presets, and rules by type, pattern and name.

Precedence, weakest first, as PyTorch users know it: default < `first_last` < operator type <
module-name regular expression < module name; `residual_bits` holds whatever the rules say. A rule
for a module type holds for its subclasses, where the rule for the nearest class wins. A rule of
`None` leaves the operator in float. A rule that matches nothing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxquant.errors import ConfigError
from fxquant.numerics.ranges import MinMax, Mse, RangeEstimator

OpType = type[nn.Module] | str
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATION_BITS = (*WEIGHT_BITS, 16)


def _check_estimator(where: str, value: Any) -> None:
    if isinstance(value, type) or not isinstance(value, RangeEstimator):
        raise ConfigError(
            f"{where} is {value!r}",
            where=where,
            remedy="pass an estimator of fxquant.numerics.ranges, such as MinMax()",
        )


@dataclass(frozen=True, slots=True)
class OpConfig:
    """Quantization of one operator.

    Attributes:
        weight_bits: 2..8.
        activation_bits: Bits of the operator's result, 2..8 or 16.
        activation_range: How the result's range is chosen.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    activation_range: RangeEstimator = Mse()

    def __post_init__(self) -> None:
        for name, bits, allowed, choice in (
            ("weight", self.weight_bits, WEIGHT_BITS, "2..8"),
            ("activation", self.activation_bits, ACTIVATION_BITS, "2..8 or 16"),
        ):
            if not isinstance(bits, int) or bits not in allowed:
                raise ConfigError(
                    f"{name}_bits={bits} is not supported",
                    why=f"integer kernels work on {name}s of {choice} bits",
                    remedy=f"choose {choice}, or None for the operator to leave it in float",
                )
        _check_estimator("OpConfig.activation_range", self.activation_range)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration.

    Attributes:
        default: Applies where no rule does; None quantizes only what a rule names.
        types: By module type (`nn.Conv2d`) or operator name (`"conv2d"`, `"add"`).
        patterns: By regular expression, matched against the whole module path.
        names: By module path (`"layer1.0.conv1"`) or node name.
        residual_bits: Bits, at least, of residual sums and of what they add. Where a value has more
            than its rule says, layers read a copy with the bits of the rule. None: the rules alone.
        first_last: Instead of the default, the bits of the first and last weighted layer, and of
            all that share their weights: of the weights, the results, and what the last one reads
            (the setting of BRECQ and QDrop). None leaves them.
        input_range: Range estimator of the network inputs.
    """

    default: OpConfig | None = OpConfig()
    types: Mapping[OpType, OpConfig | None] = field(default_factory=dict)
    patterns: Mapping[str, OpConfig | None] = field(default_factory=dict)
    names: Mapping[str, OpConfig | None] = field(default_factory=dict)
    residual_bits: int | None = None
    first_last: OpConfig | None = None
    input_range: RangeEstimator = MinMax()

    def __post_init__(self) -> None:
        _check_op_config("Config.default", self.default)
        _check_op_config("Config.first_last", self.first_last)
        _check_rules("Config.types", self.types, _is_op_type, "module types or operator names")
        _check_rules("Config.patterns", self.patterns, _is_text, "regular expressions")
        _check_rules("Config.names", self.names, _is_text, "module paths or node names")
        _check_estimator("Config.input_range", self.input_range)
        bits = self.residual_bits
        if bits is not None and not (isinstance(bits, int) and bits in ACTIVATION_BITS):
            raise ConfigError(
                f"residual_bits={bits} is not supported",
                where="Config.residual_bits",
                remedy="choose 2..8 or 16, or None for the bits of the rules",
            )
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"pattern {pattern!r} is no regular expression: {error}",
                    where="Config.patterns",
                ) from error

    def with_rules(
        self,
        types: Mapping[OpType, OpConfig | None] | None = None,
        patterns: Mapping[str, OpConfig | None] | None = None,
        names: Mapping[str, OpConfig | None] | None = None,
    ) -> Config:
        """A copy with further rules, which win over those there are for the same key.

        Args:
            types: By module type or operator name.
            patterns: By regular expression on the module path.
            names: By module path or node name.
        """
        return replace(
            self,
            types={**self.types, **(types or {})},
            patterns={**self.patterns, **(patterns or {})},
            names={**self.names, **(names or {})},
        )


def check_config(config: Any) -> None:
    """Refuse what is no configuration, where a user passes one.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"the configuration is {config!r}",
            where="config",
            remedy="pass a preset such as fxquant.W4A8, or Config(default=OpConfig(4, 8))",
        )


def _check_op_config(where: str, value: Any) -> None:
    if value is not None and not isinstance(value, OpConfig):
        raise ConfigError(
            f"{where} is {value!r}",
            where=where,
            remedy="pass an OpConfig such as OpConfig(4, 8), or None",
        )


def _check_rules(where: str, rules: Any, is_key: Callable[[Any], bool], keys: str) -> None:
    if not isinstance(rules, Mapping):
        raise ConfigError(f"{where} is {rules!r}", where=where, remedy="pass a dict of rules")
    for key, value in rules.items():
        if not is_key(key):
            raise ConfigError(
                f"{where} has a rule for {key!r}", where=where, remedy=f"its keys are {keys}"
            )
        _check_op_config(f"{where}[{key!r}]", value)


def _is_text(key: Any) -> bool:
    return isinstance(key, str)


def _is_op_type(key: Any) -> bool:
    return isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module))


def preset(weight_bits: int, activation_bits: int) -> Config:
    """W{weight_bits}A{activation_bits}; first and last layer and residual sums have 8 at least."""
    low = min(weight_bits, activation_bits) < 8
    return Config(
        default=OpConfig(weight_bits, activation_bits),
        residual_bits=8 if activation_bits < 8 else None,
        first_last=OpConfig(8, max(8, activation_bits)) if low else None,
    )


W8A8 = preset(8, 8)
W7A7 = preset(7, 7)
W6A6 = preset(6, 6)
W4A8 = preset(4, 8)
W4A4 = preset(4, 4)
W3A8 = preset(3, 8)
W3A3 = preset(3, 3)
W2A8 = preset(2, 8)
W2A4 = preset(2, 4)
