"""tvm_backend: integer networks of fxquant compiled through Apache TVM."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch.fx import GraphModule
from tqdm.auto import tqdm

from fxquant.errors import ConfigError, TargetError
from fxquant.targets import Target
from tvm_backend.devices import check_target, cpu_name, host_target, missing_features
from tvm_backend.lower import lower
from tvm_backend.progress import reporter
from tvm_backend.runtime import Compiled, load
from tvm_backend.signature import signature_of
from tvm_backend.threads import check_threads
from tvm_backend.tuning import (
    Database,
    HostLoader,
    Machine,
    Replayed,
    Search,
    Tuned,
    TunedLayer,
    problems,
    replay,
    result,
    without_variants,
)


@runtime_checkable
class HasIntegerGraph(Protocol):
    """What `fxquant.convert` returns, as far as the backend cares."""

    @property
    def integer(self) -> GraphModule:
        """The INTEGER graph."""
        ...


def compile(
    quantized: HasIntegerGraph | GraphModule,
    target: Target | None = None,
    *,
    threads: int | None = None,
    tuned: str | Path | None = None,
    progress: bool = False,
    winograd: bool = True,
) -> Compiled:
    """Compile a quantized network to integer kernels.

    Args:
        quantized: Result of `fxquant.convert`, or an INTEGER graph.
        target: A constant of `fxquant.targets`; by default what suits this machine.
        threads: Threads that parallel loops use; by default one a physical core.
        tuned: A file that `tune` wrote: its schedules instead of the cost model's, without
            measuring. Layers the file does not know take the cost model's; `Compiled.replayed`
            names them.
        progress: Show a progress bar.
        winograd: Let the cost model choose Winograd kernels where they are faster: for 3x3 layers
            and 7x7 stems.
            Results are the same bit for bit; the weights of such a layer take up to 8 times the
            memory.

    Raises:
        ConfigError: `quantized` is no quantized network, `threads` is no number of threads, or
            the file is for another target or has a schedule that does not exist.
        FileFormatError: The file is absent, damaged or of another version.
        UnsupportedError: Some operators cannot be compiled; the message lists all.
        TargetError: LLVM does not know the target.
    """
    graph = _integer_graph(quantized)
    device = check_target(host_target() if target is None else target)
    count = check_threads(threads)
    database = None if tuned is None else Database.read(Path(tuned), device)
    replayed = None
    with reporter(progress) as report:
        program = lower(graph, device, report, winograd)
        if database is not None:
            program, replayed = replay(program, database)
        program = without_variants(program)
        return Compiled(
            device, signature_of(program), count, program=program, progress=report,
            replayed=replayed,
        )  # fmt: skip


def tune(
    quantized: HasIntegerGraph | GraphModule,
    path: str | Path,
    target: Target | None = None,
    *,
    trials: int = 32,
    time_limit: float | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Tuned:
    """Search schedules for the convolutions and linear layers of a network, by measuring.

    Each candidate runs in turn with the cost model's choice and must compute the same; it is
    chosen only if it is clearly faster. Results never change, only speed. The file is written after
    every few candidates: an interrupted search (Ctrl-C, a time limit) goes on where it was when it
    is called again, and more `trials` go on after fewer.

    Args:
        quantized: Result of `fxquant.convert`, or an INTEGER graph.
        path: The file of schedules, for `compile(..., tuned=path)`; made if absent.
        target: A constant of `fxquant.targets` that this machine can run; by default the best one.
        trials: Schedules to measure for each distinct layer, in the order of the cost model.
        time_limit: Seconds to search, shared out by the time the layers take.
        threads: Threads that parallel loops use; by default one a physical core.
        progress: Show a progress bar.

    Raises:
        ConfigError: `quantized` is no quantized network, a number is not possible, or the file
            belongs to another target or machine.
        FileFormatError: The file is damaged or of another version.
        UnsupportedError: Some operators cannot be compiled; the message lists all.
        TargetError: This machine cannot run the target.
    """
    graph = _integer_graph(quantized)
    device = check_target(host_target() if target is None else target)
    if trials < 1 or (time_limit is not None and not time_limit > 0):
        raise ConfigError(
            f"trials={trials}, time_limit={time_limit} leave nothing to search",
            remedy="give at least one trial and a positive number of seconds",
        )
    missing = missing_features(device)
    if missing:
        raise TargetError(
            f"schedules for {device} cannot be measured here",
            why=f"this machine lacks {', '.join(missing)}",
            remedy="tune on the device itself and copy the file; compile needs no device",
        )
    count = check_threads(threads)
    database = Database.open(Path(path), device, Machine(cpu_name(), count))
    program = lower(graph, device)
    found = problems(program)
    search = Search(HostLoader(device, count, program.weight_bytes), trials, time_limit)
    with tqdm(total=len(found), desc="tune", unit="layer", disable=not progress) as bar:
        search.run(found, database, bar)
    return result(Path(path), found, database.entries)


def _integer_graph(quantized: object) -> GraphModule:
    if isinstance(quantized, GraphModule):
        return quantized
    if isinstance(quantized, HasIntegerGraph):
        return quantized.integer
    raise ConfigError(
        f"{type(quantized).__name__} cannot be compiled",
        remedy="pass the result of fxquant.convert",
    )


__all__ = [
    "Compiled",
    "Replayed",
    "Tuned",
    "TunedLayer",
    "compile",
    "host_target",
    "load",
    "tune",
]
