"""Measured sensitivity: the noise one quantized layer alone makes.

For every layer l and width b the float network runs with l alone quantized to b bits, by the solver
that is to quantize the network: which layers need bits depends on it. Then

    s[l, b] = mean over results y of  sum (y_lb - y)^2 / sum y^2

is the inverse of the signal-to-noise ratio. Noise of layers that are rounded independently adds
up, so the widths are chosen that minimize the sum of s under the budget (`milp.py`).

Only what comes after the layer runs again. All layers are measured at one width before the next
width, from the middle of the candidates outwards, so that a measurement can stop at any time: what
is missing is estimated from the error of rounding the weight, to which noise is proportional,

    s[l, b] = s[l, k] e[l, b] / e[l, k]      e[l, b] = |W_b - W|^2 / |W|^2,  k the nearest measured

and, for a layer not measured at all, from the median of s / e over the others.

Source: measuring one layer at a time and adding up follows Hubara et al., "Accurate Post Training
Quantization With Small Calibration Sets", ICML 2021 (there the loss of accuracy). The estimates are
ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fxquant.calibration import batches_of, check_batch
from fxquant.errors import CalibrationError, ConfigError, FileFormatError
from fxquant.ir.batch import channels_last
from fxquant.ir.device import device_of
from fxquant.numerics.types import SMALLEST_SCALE, weight_spec
from fxquant.recipes.allocation import BitProblem, Method, Prediction
from fxquant.recipes.milp import solve_milp
from fxquant.recipes.network import Network
from fxquant.recipes.probe import Probe
from fxquant.solvers.base import LayerSolver
from fxquant.solvers.checkpoint import fingerprint
from fxquant.solvers.round_to_nearest import BiasCorrection, RoundToNearest
from fxquant.solvers.scale_search import round_to_grid, start_scale

_TINY = float(np.finfo(np.float64).tiny)
_LARGEST_FILE = 64 << 20  # bytes; a row a layer and width takes about 40

Measured = dict[tuple[str, int], float]  # by weight name and width


@dataclass(frozen=True, slots=True)
class Sensitivity(Method):
    """See the module docstring.

    Attributes:
        solver: Quantizes the layer, on its float inputs.
        samples: How many inputs to measure on, the first of the data.
        at: Whose noise is measured: the "network"'s results, or those of the "unit" the layer is
            in, which is faster in deep networks.
        time_limit: Seconds of measuring; None measures everything.
        file: JSON file that keeps the measurements: the same call continues there.
    """

    solver: tuple[LayerSolver, ...] = (RoundToNearest(), BiasCorrection())
    samples: int = 32
    at: Literal["network", "unit"] = "network"
    time_limit: float | None = None
    file: str | Path | None = None

    def __post_init__(self) -> None:
        strangers = [s for s in self.solver if not isinstance(s, LayerSolver)]
        if strangers or not self.solver:
            raise ConfigError(
                "sensitivities are measured with solvers that work layer by layer",
                why=f"the solver is {self.solver!r}",
                remedy="pass a tuple of layer solvers, such as (GPTQ(), BiasCorrection())",
            )
        if self.samples < 1:
            raise ConfigError(f"samples={self.samples} measures nothing", remedy="use 32 or so")
        if self.at not in ("network", "unit"):
            raise ConfigError(f"at={self.at!r} is unknown", remedy='choose "network" or "unit"')

    def predict(
        self, network: Network, candidates: tuple[int, ...], data: Any, progress: bool
    ) -> Prediction:
        """See Method.

        Raises:
            ConfigError: No data was given.
            FileFormatError: The file belongs to another measurement.
        """
        if data is None:
            raise ConfigError(
                "sensitivities are measured on data, and none was given",
                remedy="pass data=..., or use CodingLength, which needs none",
            )
        inputs = self._inputs(network, data)
        store = _Store(self.file, fingerprint(network.graph, inputs, self.solver, 0) + self.at)
        known = store.load()
        wanted = [
            (w, b) for b in _from_the_middle(candidates) for w in network.free
            if (w.name, b) not in known
        ]  # fmt: skip
        start = time.monotonic()
        with tqdm(total=len(wanted), desc="sensitivity", disable=not progress) as bar:
            for weight, bits, loss in Probe(network, inputs, self.at, self.solver).measure(wanted):
                known[weight.name, bits] = loss
                store.save(known)
                bar.update()
                if self.time_limit is not None and time.monotonic() - start > self.time_limit:
                    break
        return complete(network, candidates, known)

    def choose(self, problem: BitProblem) -> tuple[int, ...]:
        """See Method."""
        return solve_milp(problem)

    def _inputs(self, network: Network, data: Any) -> list[Tensor]:
        """One `[S, ...]` tensor a network input."""
        count = sum(n.op == "placeholder" for n in network.graph.graph.nodes)
        device = device_of(network.graph)
        taken: list[tuple[Tensor, ...]] = []
        seen = 0
        for batch in batches_of(data, count):
            check_batch(network.graph, batch)
            taken.append(tuple(x[: self.samples - seen].to(device, torch.float32) for x in batch))
            seen += len(taken[-1][0])
            if seen >= self.samples:
                break
        if seen == 0:
            raise CalibrationError(
                "no data to measure sensitivities on", remedy="pass a non-empty loader"
            )
        return [channels_last(torch.cat(column)) for column in zip(*taken, strict=True)]


def complete(network: Network, candidates: tuple[int, ...], known: Mapping) -> Prediction:
    """The table of all losses, missing ones estimated; see the module docstring.

    Args:
        network: The network.
        candidates: Widths.
        known: `Measured`; other layers and widths are ignored.
    """
    free = network.free
    errors = np.array([[rounding_error(network.tensor(w), b) for b in candidates] for w in free])
    losses = np.array([[known.get((w.name, b), np.nan) for b in candidates] for w in free])
    measured = ~np.isnan(losses)
    ratios = losses / np.maximum(errors, _TINY)
    usual = float(np.median(ratios[measured])) if measured.any() else 1.0
    for layer in range(len(free)):
        places = np.flatnonzero(measured[layer])
        for place in np.flatnonzero(~measured[layer]):
            near = places[np.abs(places - place).argmin()] if len(places) else None
            ratio = usual if near is None else ratios[layer, near]
            losses[layer, place] = ratio * errors[layer, place]
    missing = int((~measured).sum())
    note = ""
    if missing:
        note = (f"{missing} of {measured.size} sensitivities were not measured but estimated from "
                "the rounding errors of the weights")  # fmt: skip
    return Prediction(losses, note=note)


def rounding_error(weight: Tensor, bits: int) -> float:
    """Relative squared error of a weight on the grid solvers start with."""
    spec = weight_spec(bits)
    scale = start_scale(weight, spec).clamp(min=2 * SMALLEST_SCALE)  # 0 in a channel of zeros
    error = (round_to_grid(weight, scale, spec).dequantize() - weight).double().square().sum()
    return float(error) / max(float(weight.double().square().sum()), _TINY)


def _loss(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"a loss of {value!r}")
    return float(value)


def _from_the_middle(candidates: Sequence[int]) -> list[int]:
    middle = candidates[len(candidates) // 2]
    return sorted(candidates, key=lambda b: (abs(b - middle), b))


class _Store:
    """Measurements in a JSON file, or nowhere.

    Args:
        path: The file, None to keep nothing.
        owner: What the measurements belong to.
    """

    def __init__(self, path: str | Path | None, owner: str) -> None:
        self.path, self.owner = None if path is None else Path(path), owner

    def load(self) -> Measured:
        """What was measured before."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            if self.path.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"it has {self.path.stat().st_size} bytes")
            stored = json.loads(self.path.read_text())
            owner = stored["owner"]
            known = {(str(n), int(b)): _loss(v) for n, b, v in stored["losses"]}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FileFormatError(
                f"{self.path.name} holds no sensitivities: {error}",
                where=str(self.path),
                remedy="name another file, or delete this one",
            ) from error
        if owner != self.owner:
            raise FileFormatError(
                "the sensitivities belong to another measurement",
                where=str(self.path),
                why="its model, configuration, data or place of measurement differ",
                remedy="name another file, or delete this one",
            )
        return known

    def save(self, known: Measured) -> None:
        """Keep the measurements; the file changes at once or not at all."""
        if self.path is None:
            return
        rows = [[name, bits, loss] for (name, bits), loss in known.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps({"owner": self.owner, "losses": rows}, indent=0))
        partial.replace(self.path)
