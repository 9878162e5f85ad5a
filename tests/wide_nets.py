"""Zoo networks with 16-bit activations: everywhere, or beside 8-bit ones."""

from __future__ import annotations

from collections.abc import Mapping

from fxquant.config import Config, OpConfig, preset
from tests.zoo import BY_NAME, ZooModel


def everywhere(weight_bits: int) -> Config:
    """All results at 16 bits; the network input stays at 8."""
    return Config(default=OpConfig(weight_bits, 16))


def some(patterns: Mapping[str, int], weight_bits: int = 8, others: int = 8) -> Config:
    """Results of the modules that match a pattern at another width than the others."""
    return Config(
        default=OpConfig(weight_bits, others),
        patterns={pattern: OpConfig(weight_bits, bits) for pattern, bits in patterns.items()},
    )


CONFIGS: dict[str, tuple[ZooModel, Config]] = {
    "residual W8A16": (BY_NAME["residual"], everywhere(8)),
    "inverted_bottleneck W2A16": (BY_NAME["inverted_bottleneck"], everywhere(2)),
    "branches W3A16": (BY_NAME["branches"], everywhere(3)),
    "channel_shuffle W5A16": (BY_NAME["channel_shuffle"], everywhere(5)),
    "decoder W6A16": (BY_NAME["decoder"], everywhere(6)),
    "depthwise W7A16": (BY_NAME["depthwise"], everywhere(7)),
    "activations W4A16": (BY_NAME["activations"], everywhere(4)),
    "lrn preset W4A16": (BY_NAME["lrn"], preset(4, 16)),
    "two_in_two_out W8A16": (BY_NAME["two_in_two_out"], everywhere(8)),
    "mlp W8A16": (BY_NAME["mlp"], everywhere(8)),
    "first and last layer at 8": (
        BY_NAME["branches"],
        Config(default=OpConfig(4, 16), first_last=OpConfig(8, 8)),
    ),
    "16-bit operand of an 8-bit sum": (BY_NAME["residual"], some({r"stem.*": 16})),
    "8-bit operand of a 16-bit sum": (BY_NAME["residual"], some({r"b.*": 16})),
    "8-bit layers between 16-bit ones": (
        BY_NAME["inverted_bottleneck"],
        some({r"depthwise.*": 8, r"se.*": 8}, 3, 16),
    ),
    "concat of both": (BY_NAME["branches"], some({r"two.*": 16})),
    "16 bits beside 4": (
        BY_NAME["branches"],
        Config(default=OpConfig(4, 4), types={"concat": OpConfig(4, 16)}),
    ),
}
