"""What to do about a weak operator: rules on measured data, each with its threshold.

Asked only where the isolated signal-to-noise ratio is below `GOOD_ENOUGH`. What makes most of the
noise decides: the weight, or the grid of the result or of an operand. An activation grid is then
looked at more closely, since more bits are the dearest remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fxquant.inspection.facts import NodeFacts
from fxquant.inspection.measure import Measurement
from fxquant.passes.annotate import is_border

GOOD_ENOUGH = 30.0  # dB, isolated
POOR = 20.0  # dB, cumulative
DOMINATES = 0.5  # share of the noise
CLIPPED = 0.005  # share of the values
STRETCHED = 0.25  # share of the grid that holds all but one in a thousand values
OUTLIER = 4.0  # times the median channel's largest magnitude
FEW = 0.25  # share of the channels


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """An operator with its measurements."""

    fact: NodeFacts
    measurement: Measurement


def advice(subject: Measured, operands: Sequence[Measured], solver: str) -> tuple[str, ...]:
    """Suggestions for one operator, the most promising first; empty if nothing is wrong.

    Args:
        subject: The operator.
        operands: The measured operators (or inputs) whose grids its operands lie on.
        solver: How the network was quantized, as its provenance says.
    """
    measurement = subject.measurement
    if measurement.isolated.sqnr >= GOOD_ENOUGH or subject.fact.float_reason:
        return ()
    noise = measurement.noise
    if noise.weight >= DOMINATES:
        return _weight(subject.fact, noise.weight, solver)
    if noise.result >= DOMINATES:
        return _grid(subject, f"activations dominate ({noise.result:.0%}, the result)", solver)
    if noise.operands >= DOMINATES and operands:
        worst = min(operands, key=lambda m: m.measurement.isolated.sqnr)
        name = worst.fact.node
        return _grid(worst, f"activations dominate ({noise.operands:.0%}, {name})", solver)
    parts = f"weight {noise.weight:.0%}, operands {noise.operands:.0%}, result {noise.result:.0%}"
    return (f"no single cause ({parts}): more bits for the layer",)


def overall(measured: Sequence[Measurement], solver: str) -> str:
    """Advice where no operator is weak and the result still is; "" otherwise."""
    if not measured or any(m.isolated.sqnr < GOOD_ENOUGH for m in measured):
        return ""
    if measured[-1].cumulative.sqnr >= POOR:
        return ""
    remedy = "16-bit activations" if "UWC" in solver else "solver=(GPTQ(), UWC())"
    return f"No operator is weak, but {len(measured)} small errors add up: {remedy}."


def _weight(fact: NodeFacts, share: float, solver: str) -> tuple[str, ...]:
    assert fact.weight is not None
    found = []
    if "GPTQ" not in solver or "UWC" not in solver:
        found.append("solver=(GPTQ(), UWC())")
    if fact.weight.bits < 8:
        found.append(_rule(fact, weight_bits=min(fact.weight.bits + 2, 8)))
    elif "Equalization" not in solver:
        found.append("CrossLayerEqualization() before the solver")
    first, *rest = found or [f'leave it in float, names={{"{_path(fact)}": None}}']
    return (f"weights dominate ({share:.0%}): {first}", *rest)


def _grid(value: Measured, lead: str, solver: str) -> tuple[str, ...]:
    """On the grid of a value whose rounding dominates."""
    fact, histogram = value.fact, value.measurement.values
    found = []
    channels = value.measurement.channels
    outliers = outlier_channels(channels)
    if outliers and "ActivationEqualization" not in solver:
        found.append(
            f"range of {fact.node} dominated by outliers in {outliers} of {len(channels)} "
            "channels: ActivationEqualization()"
        )
    if histogram is not None and histogram.clipped > CLIPPED:
        found.append(
            f"{histogram.clipped:.1%} of {fact.node} clipped: calibrate with more data like this, "
            f"or {_range(fact, 'MinMax()')}"
        )
    elif histogram is not None and histogram.used < STRETCHED:
        found.append(
            f"99.9% of {fact.node} on {histogram.used:.0%} of its grid: "
            + _range(fact, "Percentile()")
        )
    bits = fact.bits or 8
    if bits < 8 and "EasyQuant" not in solver and "UWC" not in solver:
        found.append(f"{lead}: EasyQuant() or UWC() for a finer scale")
    if fact.operator != "input" and bits < 16:
        found.append(f"{lead}: " + _rule(fact, activation_bits=8 if bits < 8 else 16))
    return tuple(found) or (f"{lead}: more representative calibration data",)


def _path(fact: NodeFacts) -> str:
    return fact.module or fact.node


def _rule(fact: NodeFacts, weight_bits: int = 0, activation_bits: int = 0) -> str:
    """The rule that gives an operator other widths."""
    weight = weight_bits or (fact.weight.bits if fact.weight else 8)
    return f'names={{"{_path(fact)}": OpConfig({weight}, {activation_bits or fact.bits or 8})}}'


def _range(fact: NodeFacts, estimator: str) -> str:
    """The setting that chooses a range otherwise."""
    if fact.operator == "input":
        return f"input_range={estimator}"
    return f'activation_range={estimator} for "{_path(fact)}"'


def outlier_channels(largest: Sequence[float]) -> int:
    """How many channels alone set the range: few, and far above the median; 0 if none do.

    Args:
        largest: Largest magnitude of every channel.
    """
    usual = median(largest) if len(largest) > 2 else 0.0
    outliers = sum(value > OUTLIER * usual for value in largest)
    return outliers if usual > 0 and outliers <= FEW * len(largest) else 0


def float_remedy(fact: NodeFacts) -> str:
    """How an operator that stays in float could run on integers; "" if there is nothing to do."""
    reason = fact.float_reason
    if not reason or is_border(reason):
        return ""
    if "configuration" in reason:
        return "remove the rule from the configuration"
    if "that are in float" in reason:
        return "comes along once the operator before it runs on integers"
    if "constants" in reason or "integers of the model" in reason:
        return "compute it once, outside of forward()"
    if fact.operator in ("softmax", "log_softmax"):
        return "at the end of the network: leave it out, the largest logit stays the largest"
    return "replace it by an operator with an integer form, or move it to an end of the network"
