"""How far every value of the quantized network is from its float original.

Two errors a value, because they answer two questions:

* cumulative: the Q/DQ graph against the float network, everything before the value quantized too.
  It says where the network has drifted to.
* isolated: float inputs, only this operator quantized (its operands, weight and result). It says
  which operator is to blame.

A `Quantized` holds integer weight codes, not the float weights. Without the float model the
reference therefore runs the dequantized weights, and only the rounding of activations shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxquant.inspection.measure import SAMPLES, measure
from fxquant.inspection.similarity import Similarity
from fxquant.model import Quantized


@dataclass(frozen=True, slots=True)
class LayerError:
    """Errors of one value of the network."""

    node: str
    cumulative: Similarity
    isolated: Similarity


def layer_errors(
    quantized: Quantized, data: Any, model: Any = None, samples: int = SAMPLES
) -> tuple[LayerError, ...]:
    """Errors of every operator's result and of the quantized inputs, in execution order.

    Args:
        quantized: From `fxquant.convert`.
        data: As in `fxquant.calibrate`: a tensor or an iterable of batches.
        model: The float model; without it the error of the weights does not show.
        samples: How many inputs to use at most.

    Raises:
        CalibrationError: There is no data.
        ConfigError: `model` is not the one that was quantized.
    """
    measured = measure(quantized, data, model, samples).values.values()
    return tuple(LayerError(m.node, m.cumulative, m.isolated) for m in measured)
