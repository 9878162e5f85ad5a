"""prepare, calibrate, convert, quantize: the straight line, as lists of passes."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from tqdm.auto import tqdm

from fxquant.allocator import kept_memory
from fxquant.calibration import Calibration, batches_of, check_batch, example_of
from fxquant.config import W8A8, Config, check_config
from fxquant.errors import CalibrationError, CaptureError, ConfigError, StageError, TargetError
from fxquant.ir import meta
from fxquant.ir.batch import fixed_batch, run_in_batches
from fxquant.ir.device import CPU, device_of, model_device, move, working_on
from fxquant.ir.frontend import capture, normalize
from fxquant.ir.frontend.capture import as_inputs, required_inputs
from fxquant.ir.stages import Stage, verify
from fxquant.ir.units import units
from fxquant.model import FloatIsland, Quantized, float_islands
from fxquant.passes.annotate import annotate, range_estimators
from fxquant.passes.equalize import equalize
from fxquant.passes.fuse import fuse
from fxquant.recipes.defaults import default_steps, pixels_of
from fxquant.solvers.base import Solver
from fxquant.solvers.checkpoint import Checkpoint, fingerprint
from fxquant.solvers.driver import MEMORY, Options, Solved, solve
from fxquant.solvers.equalization import Equalization, EqualizationProblem
from fxquant.solvers.state import Record
from fxquant.targets import Target
from fxquant.version import __version__

Step = Solver | Equalization

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


@torch.inference_mode(False)  # its tensors could not be trained on
def prepare(
    model: Any,
    example_inputs: Any,
    config: Config = W8A8,
    target: Target | None = None,
) -> Prepared:
    """Capture, fuse and annotate a model for quantization. The caller's model is not changed.

    Calibration runs on the device the model is on; what comes after it, on the CPU.

    Args:
        model: `nn.Module`, fx `GraphModule` or `ExportedProgram`; runs in inference mode.
        example_inputs: A tensor or a tuple of tensors, as forward() takes them, with batch axis; on
            any device.
        config: What to quantize and how finely.
        target: The device; checked by name only, every target runs the same integers.

    Returns:
        A `Prepared` to be calibrated.

    Raises:
        CaptureError: The model cannot be captured, or is spread over several devices.
        ConfigError: The configuration or the example inputs are invalid.
        TargetError: `target` is no Target.
    """
    if target is not None and not isinstance(target, Target):
        raise TargetError(
            f"target is a {type(target).__name__}",
            remedy="use a constant of fxquant.targets, or Target(...)",
        )
    check_config(config)
    device = model_device(model)
    inputs = as_inputs(example_inputs)
    gm = normalize(capture(model, inputs), inputs)
    _check_parameters(gm)
    gm = fuse(gm)
    verify(gm, Stage.FUSED)
    gm = annotate(gm, config)
    verify(gm, Stage.ANNOTATED)
    return Prepared(move(gm, device), config, target)


def _check_parameters(gm: GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = meta.tensor_of(gm, node)
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise CaptureError(
                f"parameter {node.target} contains NaN or infinite values",
                where=str(node.target),
                why="they cannot be quantized",
                remedy="load the right checkpoint, or repair the training run",
            )


@torch.inference_mode(False)
@kept_memory()
def calibrate(
    prepared: Prepared,
    data: Any,
    solver: Step | Sequence[Step] | None = None,
    *,
    progress: bool = True,
    seed: int = 0,
    memory: int = MEMORY,
    checkpoint: str | Path | None = None,
) -> Prepared:
    """Stream calibration data through the model, then choose grids and weights.

    Runs on the device the model was on. A GPU sums in another order than the CPU, so that codes
    may differ between them; what the codes mean is the same.

    Args:
        prepared: From `prepare`.
        data: A tensor, a DataLoader or any iterable of batches: tensors, tuples, `(x, label)`, on
            any device. None goes on with what was observed. After Ctrl-C, the same call, or one
            with None, does not solve the units again that are solved already.
        solver: A solver or a tuple of them, applied in order, equalizations first; default: the
            recipe of the preset.
        progress: Show progress bars on stderr.
        seed: Seed of the solver; the same inputs and seed give the same bytes.
        memory: Bytes for cached activations, of the device's memory; more go to a temporary file.
        checkpoint: Directory for solved units: the same call continues an interrupted run there.

    Raises:
        CalibrationError: The data is empty, of the wrong shape or not finite.
        ConfigError: The solver, the seed or the memory is none.
    """
    if not isinstance(prepared, Prepared):
        raise CalibrationError(
            f"calibrate got a {type(prepared).__name__}",
            remedy="pass what fxquant.prepare returned",
        )
    options = Options(seed=seed, memory=memory, progress=progress)
    if solver is not None:
        split(solver)  # before the data is read
    if data is not None:
        if prepared.streamed:  # and interrupted
            prepared.calibration.forget()
        prepared.streamed = True
        total = len(data) if isinstance(data, Sized) and not isinstance(data, Tensor) else None
        batches = batches_of(data, len(prepared.calibration.inputs))
        for batch in tqdm(batches, "calibrate", total, unit="batch", disable=not progress):
            prepared(*batch)
    prepared.solve(solver, options, checkpoint)
    return prepared


@torch.inference_mode(False)
def convert(prepared: Prepared) -> Quantized:
    """The quantized network. A model observed by hand is solved with the default solver first.

    Args:
        prepared: From `prepare`, after `calibrate` or calls on batches.

    Raises:
        CalibrationError: No calibration data was seen.
        StageError: `prepared` is something else.
    """
    if not isinstance(prepared, Prepared):
        raise StageError(
            f"convert got a {type(prepared).__name__}", remedy="pass what fxquant.prepare returned"
        )
    if prepared.solved is None:
        if prepared.calibration.store.seen == 0:
            raise CalibrationError(
                "the model was not calibrated",
                why="without data the ranges of the activations are unknown",
                remedy="call fxquant.calibrate(prepared, loader) before convert",
            )
        prepared.solve(None, Options(progress=False))
    assert prepared.solved is not None
    provenance = {
        "fxquant": __version__,
        "torch": str(torch.__version__),
        "config": repr(prepared.config),
        "solver": prepared.solver_name,
        "samples": prepared.calibration.store.seen,
    }
    graph = copy.deepcopy(prepared.graph)
    return Quantized(graph, dict(prepared.solved.notes), provenance, prepared.batch)


def quantize(
    model: Any,
    data: Any,
    example_inputs: Any = None,
    config: Config = W8A8,
    solver: Step | Sequence[Step] | None = None,
    target: Target | None = None,
    *,
    progress: bool = True,
    seed: int = 0,
    memory: int = MEMORY,
    checkpoint: str | Path | None = None,
) -> Quantized:
    """prepare, calibrate and convert in one call.

    Args:
        model: As in `prepare`.
        data: As in `calibrate`; must be re-iterable if `example_inputs` is None.
        example_inputs: Default: the first sample of the first batch, of as many tensors as
            forward() has inputs without default.
        config: As in `prepare`.
        solver: As in `calibrate`.
        target: As in `prepare`.
        progress: Show progress bars.
        seed: Seed of the solver.
        memory: As in `calibrate`.
        checkpoint: As in `calibrate`.

    Raises:
        CalibrationError: The data is unusable, or can be read only once and `example_inputs` is
            None.
        CaptureError: The model cannot be captured, or is spread over several devices.
        ConfigError: The configuration or the example inputs are invalid.
    """
    if example_inputs is None:
        example_inputs = example_of(data, required_inputs(model))
    prepared = prepare(model, example_inputs, config, target)
    calibrate(
        prepared, data, solver,
        progress=progress, seed=seed, memory=memory, checkpoint=checkpoint,
    )  # fmt: skip
    return convert(prepared)
