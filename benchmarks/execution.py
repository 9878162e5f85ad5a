"""A lowered network run kernel by kernel, each timed inside the whole.

Every kernel finds its operands as in the compiled network: activations where the memory plan puts
them, with halo, written by the kernels before; weights of its own, last touched one inference
ago. So nothing is warm that would not be.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvm_backend.build import host_functions
from tvm_backend.kernel import Abi, Param, prim_func
from tvm_backend.memory_plan import ALIGNMENT, lifetimes, plan_memory
from tvm_backend.program import Island, Program, Step
from tvm_backend.tvm_api import T, tvm


class Execution:
    """A program, ready to run step by step on this machine.

    Args:
        program: From `lower`.
        inputs: One tensor an input.
    """

    def __init__(self, program: Program, inputs: list[Tensor]) -> None:
        self.program = program
        kernels = {name: kernel.build(Abi.PACKED) for name, kernel in program.kernels.items()}
        self._functions = host_functions(kernels, program.target)
        self._buffers = self._place()
        for name, array in program.constants.items():
            self._buffers[name].copy_(torch.from_numpy(array))
        for name, x in zip(program.inputs, inputs, strict=True):
            self._buffers[name].copy_(x.contiguous().reshape(-1))
        self._calls = [self._call(step) for step in program.steps]
        self._nothing = _nothing(program)

    def _place(self) -> dict[str, Tensor]:
        """Memory of every value: the planned arena, and blocks of their own for the rest."""
        plan = plan_memory(lifetimes(self.program))
        arena = _aligned(plan.nbytes)
        buffers = {}
        for name, value in self.program.values.items():
            dtype = getattr(torch, value.storage.dtype)
            nbytes = value.storage.size * np.dtype(value.storage.dtype).itemsize
            block = arena[plan.offsets[name] :] if name in plan.offsets else _aligned(nbytes)
            buffers[name] = block[:nbytes].view(dtype)
        return buffers

    def _call(self, step: Step | Island) -> Any:
        if isinstance(step, Island):
            return lambda: self._run_island(step)
        function = self._functions[step.kernel.name]
        values = [tvm.runtime.from_dlpack(self._buffers[n]) for n in step.inputs]
        constants = [tvm.runtime.tensor(a.reshape(-1)) for a in step.kernel.constants]
        result = tvm.runtime.from_dlpack(self._buffers[step.output])
        arguments = (*values, *constants, result)
        return lambda: function(*arguments)

    def _run_island(self, island: Island) -> None:
        values = self.program.values
        inputs = [self._buffers[n].view(values[n].shape) for n in island.inputs]
        with torch.no_grad():
            results = island.module(*inputs)
        for name, result in zip(island.outputs, results, strict=True):
            self._buffers[name].copy_(result.reshape(-1))

    def output(self, name: str) -> Tensor:
        """The stored elements of a value, as the last run left them."""
        return self._buffers[name]

    def run(self) -> np.ndarray:
        """Run the network once; returns seconds of every step, `[steps]`, less a call's own."""
        overhead = min(_seconds(self._nothing) for _ in range(5))
        taken = [_seconds(call) for call in self._calls]
        return np.maximum(np.array(taken) - overhead, 1e-9)


def _aligned(nbytes: int) -> Tensor:
    """Zeroed bytes from an aligned address on."""
    block = torch.zeros(nbytes + ALIGNMENT, dtype=torch.uint8)
    start = -block.data_ptr() % ALIGNMENT
    return block[start : start + nbytes]


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _nothing(program: Program) -> Any:
    """A call of a kernel that does nothing, to learn what a call costs."""
    with prim_func("nothing", [Param("y", (1,), "int32")], Abi.PACKED) as (built, p):
        T.buffer_store(p["y"], T.int32(0), [0])
    function = host_functions({"nothing": built.func}, program.target)["nothing"]
    argument = tvm.runtime.tensor(np.zeros(1, np.int32))
    return lambda: function(argument)
