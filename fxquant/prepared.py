"""A model being calibrated: what was observed, and what the solvers made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant.calibration import Calibration, check_batch
from fxquant.config import Config
from fxquant.errors import ConfigError, StageError
from fxquant.ir import meta
from fxquant.ir.batch import fixed_batch, run_in_batches
from fxquant.ir.device import CPU, device_of, move, working_on
from fxquant.ir.stages import Stage, verify
from fxquant.ir.units import units
from fxquant.model import FloatIsland, float_islands
from fxquant.passes.annotate import range_estimators
from fxquant.passes.equalize import equalize
from fxquant.recipes.defaults import default_steps, pixels_of
from fxquant.solvers.base import Solver
from fxquant.solvers.checkpoint import Checkpoint, fingerprint
from fxquant.solvers.driver import Options, Solved, solve
from fxquant.solvers.equalization import Equalization, EqualizationProblem, Step
from fxquant.solvers.state import Record
from fxquant.targets import Target

SOLVER_SAMPLES = 1024
SOLVER_INPUT_BYTES = 1 << 30


class Prepared:
    """A model being calibrated: call it on batches, or pass it to `calibrate`.

    Attributes:
        graph: The annotated graph, where the model is; on the CPU once it is solved.
        config: Its configuration.
        units: The Basic-Units that solvers work on.
        batch: The only batch size the graph can run, None if any will do.
        target: The device it is meant for, if named.
        calibration: What has been observed.
        solved: Result of the solver, None before.
        equalized: The equalizations applied to the graph.
        refusals: Layers whose channels they could not scale, and why.
    """

    def __init__(self, graph: GraphModule, config: Config, target: Target | None) -> None:
        self.graph, self.config, self.target = graph, config, target
        limit = min(SOLVER_SAMPLES, max(1, SOLVER_INPUT_BYTES // input_bytes(graph)))
        self.units = units(graph)
        self.batch = fixed_batch(graph)
        self.calibration = Calibration(graph, range_estimators(graph, config), limit)
        self.solved: Solved | None = None
        self.solver_name = ""
        self.streamed = False  # calibrate has passed data
        self.finished: dict[str, Record] = {}  # solved units of an interrupted run
        self.owner = ""  # that run
        self.equalized: tuple[Equalization, ...] = ()
        self.refusals: dict[str, str] = {}

    @torch.inference_mode(False)
    def __call__(self, *inputs: Tensor) -> Any:
        """Observe a batch, on any device; returns the float model's output, where the model is."""
        if self.solved is not None:
            raise StageError(
                "this model is calibrated already",
                remedy="call prepare again to calibrate with other data",
            )
        check_batch(self.graph, inputs)
        batch = [x.clone() if x.is_inference() else x for x in inputs]
        return run_in_batches(self.graph.graph, self.calibration.observe, batch, self.batch)

    def __str__(self) -> str:
        nodes = {n.name: n for n in self.graph.graph.nodes}
        lines = []
        for unit in self.units:
            lines.append(f"{unit.name} <- {', '.join(unit.inputs)}")
            for name in unit.nodes:
                value, reason = meta.quant(nodes[name]), meta.float_reason(nodes[name])
                kind = f"float: {reason}" if reason else str(value.spec.dtype) if value else "f32"
                lines.append(f"  {name}: {kind}")
        return "\n".join(lines)

    @property
    def float_islands(self) -> tuple[FloatIsland, ...]:
        """Operators that will stay in float, with reasons."""
        return float_islands(self.graph)

    def solve(
        self,
        solver: Step | Sequence[Step] | None,
        options: Options,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Equalize, choose grids, then weights unit by unit.

        Args:
            solver: As in `calibrate`.
            options: Seed, memory and progress.
            checkpoint: As in `calibrate`.
        """
        chosen = solver
        if chosen is None:
            chosen = default_steps(self.config, pixels_of(self.graph))
        equalizations, steps = split(chosen)
        device = device_of(self.graph)
        with working_on(device):
            self._equalize(equalizations)
        self.calibration.set_grids()
        samples = self.calibration.store.stacked()
        options = replace(options, batch=self.batch)
        on_solved, owner = None, fingerprint(self.graph, samples, steps, options.seed)
        if owner != self.owner:
            self.finished, self.owner = {}, owner
        if checkpoint is not None:
            stored = Checkpoint(checkpoint, owner)
            self.finished = stored.load(self.graph)
            on_solved = stored.add
        with working_on(device):
            self.solved = solve(self.graph, samples, steps, options, self.finished, on_solved)
        move(self.graph, CPU)
        self.solver_name = repr((*equalizations, *steps))
        for name, note in scaling_notes(self.graph).items():
            notes = self.solved.notes
            notes[name] = f"{notes[name]}; {note}" if name in notes else note
        verify(self.graph, Stage.CALIBRATED)

    def _equalize(self, steps: tuple[Equalization, ...]) -> None:
        """Scale channels; what an interrupted call has done is not done again."""
        done = len(self.equalized)
        if steps[:done] != self.equalized:
            raise StageError(
                f"this model is equalized already, with {self.equalized}",
                why="its float weights have changed",
                remedy="call prepare again, or begin with the same equalizations",
            )
        for step in steps[done:]:
            problem = EqualizationProblem.of(self.graph, self.calibration.kept(self.batch))
            equalize(self.graph, problem.classes, step.factors(problem))
            self.equalized, self.refusals = (*self.equalized, step), problem.classes.refusals
        if steps:
            self.calibration.reobserve(self.batch)


def input_bytes(gm: GraphModule) -> int:
    """Bytes of one sample of all network inputs in float32."""
    shapes = [meta.shape_of(n)[1:] for n in gm.graph.nodes if n.op == "placeholder"]
    return max(1, sum(4 * torch.Size(shape).numel() for shape in shapes))


def split(
    solver: Step | Sequence[Step],
) -> tuple[tuple[Equalization, ...], tuple[Solver, ...]]:
    """The equalizations and the solvers behind them.

    Raises:
        ConfigError: A step is neither, or an equalization comes after a solver.
    """
    steps: tuple[Any, ...] = tuple(solver) if isinstance(solver, tuple | list) else (solver,)
    for step in steps:
        if not isinstance(step, Step):
            raise ConfigError(
                f"{step!r} is no solver",
                where="solver",
                remedy="pass an object such as fxquant.solvers.GPTQ(), a tuple of such objects, or "
                'a recipe by its name: fxquant.recipes.recipe("gptq")',
            )
    equalizations = tuple(s for s in steps if isinstance(s, Equalization))
    if steps[: len(equalizations)] != equalizations:
        raise ConfigError(
            f"{equalizations[-1]!r} comes after a solver",
            why="it scales float weights, which a solver has turned into integer codes",
            remedy="put equalizations first",
        )
    return equalizations, tuple(s for s in steps if not isinstance(s, Equalization))


def scaling_notes(gm: GraphModule) -> dict[str, str]:
    """By layer name, by what its channels were divided."""
    notes: dict[str, str] = {}
    for node in gm.graph.nodes:
        factors = meta.channel_factors(node)
        if factors is not None and meta.is_weighted(node):
            low, high = float(factors.min()), float(factors.max())
            notes[node.name] = f"channels divided by {low:.3g}..{high:.3g}"
    return notes
