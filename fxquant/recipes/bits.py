"""Mixed precision: `allocate_bits` and `pareto_front`.

allocation = fxquant.recipes.allocate_bits(model, x, average=4.0)
quantized = fxquant.quantize(model, loader, x, config=allocation.config)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch

from fxquant.allocator import kept_memory
from fxquant.config import W4A8, WEIGHT_BITS, Config
from fxquant.errors import ConfigError
from fxquant.ir.device import device_of, working_on
from fxquant.recipes.allocation import BitProblem, Method, Prediction
from fxquant.recipes.coding_length import CodingLength
from fxquant.recipes.network import Network, WeightInfo, describe
from fxquant.recipes.result import Allocation, LayerBits, ParetoFront

CANDIDATES = (2, 3, 4, 5, 6, 8)
DEFAULT_METHOD = CodingLength()
AVERAGES = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0)

Budget = Literal["size", "bit_operations"]


@torch.inference_mode(False)  # it would forbid what solvers do
@kept_memory()
def allocate_bits(
    model: Any,
    example_inputs: Any,
    average: float = 4.0,
    *,
    method: Method = DEFAULT_METHOD,
    data: Any = None,
    config: Config = W4A8,
    candidates: Sequence[int] = CANDIDATES,
    budget: Budget = "size",
    progress: bool = True,
) -> Allocation:
    """Choose a bit width for the weight of every layer. The caller's model is not changed.

    Layers are judged on the device the model is on.

    The first and the last layer keep the width of `config.first_last` (default 8 bits), layers
    that a rule of `config` names keep theirs, depthwise layers get 4 bits at least, and layers that
    share a weight share its width.

    Args:
        model: As in `fxquant.prepare`.
        example_inputs: As in `fxquant.prepare`.
        average: What the layers that are chosen may cost together: as much as if all had this
            width.
        method: `CodingLength()` looks at the weights alone; `Sensitivity()` measures noise on data.
        data: As in `fxquant.calibrate`, for methods that measure.
        config: What the widths refine; activations stay as it says.
        candidates: Widths to choose from.
        budget: What is limited: the bits of the weights, or the bit-operations.
        progress: Show a progress bar.

    Raises:
        CaptureError: The model cannot be captured, or is spread over several devices.
        ConfigError: The average cannot be reached, or an argument is invalid.
    """
    network, widths = describe(model, example_inputs, config), _widths(candidates)
    problems = _problems(network, widths, [average], budget, method, data, progress)
    return _solve(network, problems[0], method)


def pareto_front(
    model: Any,
    example_inputs: Any,
    averages: Sequence[float] = AVERAGES,
    *,
    method: Method = DEFAULT_METHOD,
    data: Any = None,
    config: Config = W4A8,
    candidates: Sequence[int] = CANDIDATES,
    budget: Budget = "size",
    progress: bool = True,
) -> ParetoFront:
    """Allocations over a range of averages; layers are judged once. Arguments as in allocate_bits.

    Raises:
        CaptureError: The model cannot be captured, or is spread over several devices.
        ConfigError: An average cannot be reached, or an argument is invalid.
    """
    network, widths = describe(model, example_inputs, config), _widths(candidates)
    problems = _problems(network, widths, averages, budget, method, data, progress)
    return ParetoFront.of([_solve(network, problem, method) for problem in problems])


def _widths(candidates: Sequence[int]) -> tuple[int, ...]:
    widths = tuple(sorted(set(candidates)))
    unknown = [b for b in widths if b not in WEIGHT_BITS]
    if unknown or not widths:
        raise ConfigError(
            f"candidates {tuple(candidates)} are no weight widths",
            remedy=f"choose of {WEIGHT_BITS}",
        )
    return widths


def _problems(
    network: Network, widths: tuple[int, ...], averages: Sequence[float], budget: Budget,
    method: Method, data: Any, progress: bool,
) -> list[BitProblem]:  # fmt: skip
    """One problem an average, on the same prediction; all are checked before it is made."""
    if budget not in ("size", "bit_operations"):
        raise ConfigError(
            f"budget={budget!r} is unknown", remedy='choose "size" or "bit_operations"'
        )
    if not isinstance(method, Method):
        raise ConfigError(
            f"{method!r} is no method",
            where="method",
            remedy="pass CodingLength() or Sensitivity()",
        )
    for average in averages:
        if not isinstance(average, Real) or not math.isfinite(average):
            raise ConfigError(
                f"an average of {average!r} bits is no number",
                where="average",
                remedy="pass one such as 4.5",
            )
    free = network.free
    costs = [w.size if budget == "size" else w.bit_operations for w in free]
    per_bit = np.array(costs, dtype=np.float64)
    smallest = np.array([w.smallest for w in free])
    empty = Prediction(np.zeros((len(free), len(widths))))
    limits = [average * float(per_bit.sum()) for average in averages]
    for limit in limits:
        BitProblem(widths, smallest, per_bit, limit, empty)
    with working_on(device_of(network.graph)):
        prediction = method.predict(network, widths, data, progress)
    return [BitProblem(widths, smallest, per_bit, limit, prediction) for limit in limits]


def _solve(network: Network, problem: BitProblem, method: Method) -> Allocation:
    chosen = dict(zip(network.free, method.choose(problem), strict=True))
    place = {w: i for i, w in enumerate(network.free)}
    prediction = problem.prediction

    def layer(weight: WeightInfo) -> LayerBits:
        bits, rate, loss = weight.fixed, None, None
        if bits is None:
            bits, index = chosen[weight], place[weight]
            rate = None if prediction.rates is None else float(prediction.rates[index])
            loss = float(prediction.losses[index, problem.candidates.index(bits)])
        return LayerBits(
            weight.name, bits, weight.size, weight.macs, weight.activation_bits,
            weight.fixed is not None, rate, loss, weight.rules,
        )  # fmt: skip

    layers = tuple(layer(w) for w in network.weights)
    return Allocation(layers, network.config, repr(method), prediction.note)
