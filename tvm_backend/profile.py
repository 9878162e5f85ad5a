"""Looking into a compiled network: where its values lie, and how long each kernel takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxquant.errors import StageError
from tvm_backend.float_island import symbol as island_symbol
from tvm_backend.memory_plan import lifetimes, plan_memory
from tvm_backend.program import Island, Program
from tvm_backend.tvm_api import relax, tvm


@dataclass(frozen=True, slots=True)
class PlacedValue:
    """Memory in the arena of the standalone form.

    Attributes:
        name: The value; those that overwrite it in place follow after arrows.
        offset: First byte.
        nbytes: Size.
        first: Step of the program that writes it.
        last: Last step that reads it.
    """

    name: str
    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """Time of one kernel call, or of a float island.

    Attributes:
        node: Node of the INTEGER graph.
        kernel: Name of the kernel, or of the island.
        milliseconds: Median over the rounds.
    """

    node: str
    kernel: str
    milliseconds: float


def memory_map(program: Program) -> tuple[PlacedValue, ...]:
    """The static memory plan, in execution order."""
    values = lifetimes(program)
    plan = plan_memory(values)
    return tuple(
        PlacedValue(
            " → ".join((v.name, *v.successors)), plan.offsets[v.name], v.nbytes, v.first, v.last
        )
        for v in values
    )


def time_kernels(
    program: Program, executable: Any, inputs: Sequence[Any], rounds: int
) -> tuple[KernelTiming, ...]:
    """Time every step of a program on this machine.

    Args:
        program: The program.
        executable: The Relax executable built from it.
        inputs: Flat TVM tensors.
        rounds: How often to run it, after one run that does not count.

    Raises:
        StageError: The executable does not run the steps of the program.
    """
    symbols = [_symbol(step, program) for step in program.steps]
    watch = _Stopwatch(set(symbols))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    machine.set_instrument(watch)
    times = []
    for _ in range(1 + rounds):
        watch.times.clear()
        machine["main"](*inputs)
        if [name for name, _ in watch.times] != symbols:
            raise StageError(
                "the executable does not run the steps of its program",
                remedy="this is a bug in the build; please report it with the network",
            )
        times.append([seconds for _, seconds in watch.times])
    medians = 1e3 * np.median(np.array(times[1:]), axis=0)
    return tuple(
        KernelTiming(_node(step), symbol, float(median))
        for step, symbol, median in zip(program.steps, symbols, medians, strict=True)
    )


def _symbol(step: Any, program: Program) -> str:
    return island_symbol(step, program) if isinstance(step, Island) else step.kernel.name


def _node(step: Any) -> str:
    return step.outputs[-1] if isinstance(step, Island) else step.node


class _Stopwatch:
    """Called by the virtual machine before and after every call.

    Args:
        names: The calls to time.
    """

    def __init__(self, names: set[str]) -> None:
        self.names, self.start = names, 0.0
        self.times: list[tuple[str, float]] = []

    def __call__(self, _: Any, name: str, before: bool, *rest: Any) -> int:
        now = time.perf_counter()
        if name in self.names:
            if not before:
                self.times.append((name, now - self.start))
            self.start = time.perf_counter()
        return 0
