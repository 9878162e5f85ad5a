"""prepare, calibrate, convert, quantize: the straight line, as lists of passes."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from tqdm.auto import tqdm

from fxquant.allocator import kept_memory
from fxquant.calibration import batches_of, example_of
from fxquant.config import W8A8, Config, check_config
from fxquant.errors import CalibrationError, CaptureError, StageError, TargetError
from fxquant.ir import meta
from fxquant.ir.device import model_device, move
from fxquant.ir.frontend import capture, normalize
from fxquant.ir.frontend.capture import as_inputs, required_inputs
from fxquant.ir.stages import Stage, verify
from fxquant.model import Quantized
from fxquant.passes.annotate import annotate
from fxquant.passes.fuse import fuse
from fxquant.prepared import Prepared, split
from fxquant.solvers.driver import MEMORY, Options
from fxquant.solvers.equalization import Step
from fxquant.targets import Target
from fxquant.version import __version__


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
