"""Kernels on this machine, timed as they would run inside a network.

Before each call the weights are driven out of the caches as the other layers would, by reading as
many bytes as the network has weights; the inputs are written anew, as the layer before does.

With one thread the processor's time of that thread counts: what other programs take is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fxquant.targets import Target
from tvm_backend.build import host_functions
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.layout import Flat
from tvm_backend.threads import use_threads
from tvm_backend.tvm_api import tvm

_MOST_EVICTED = 32 << 20  # bytes; larger than the caches of one core


class Runner(Protocol):
    """A kernel ready to run."""

    def run(self) -> float:
        """Run it once; returns nanoseconds."""
        ...

    def result(self) -> np.ndarray:
        """The elements of the last run's result, without padding channels."""
        ...


Loader = Callable[[Sequence[Kernel]], Sequence[Runner]]


class HostLoader:
    """Compiles kernels for this machine.

    Args:
        target: The device.
        threads: Threads of parallel loops.
        weight_bytes: Bytes of all weights of the network.
    """

    def __init__(self, target: Target, threads: int, weight_bytes: int) -> None:
        self.target, self.threads = target, threads
        self._evicted = np.zeros(min(weight_bytes, _MOST_EVICTED) // 8 + 1, np.int64)

    def __call__(self, kernels: Sequence[Kernel]) -> list[Runner]:
        """Compile kernels of distinct names, in one go; all get the same inputs."""
        use_threads(self.threads)
        built = {kernel.name: kernel.build(Abi.PACKED) for kernel in kernels}
        compiled = host_functions(built, self.target)
        clock = time.thread_time_ns if self.threads == 1 else time.perf_counter_ns
        return [_HostRunner(k, compiled[k.name], self._evict, clock) for k in kernels]

    def _evict(self) -> None:
        self._evicted.sum()


class _HostRunner:
    def __init__(
        self, kernel: Kernel, function: Any, evict: Callable[[], None], clock: Callable[[], int]
    ) -> None:
        self._function, self._evict, self._clock = function, evict, clock
        self._output = kernel.output
        self._inputs = [(values, _empty(values)) for values in _codes(kernel)]
        constants = [tvm.runtime.tensor(array.reshape(-1)) for array in kernel.constants]
        self._result = _empty(np.empty(kernel.output.size, kernel.output.dtype))
        self._arguments = [*(tensor for _, tensor in self._inputs), *constants, self._result]

    def run(self) -> float:
        self._evict()
        for values, tensor in self._inputs:
            tensor.copyfrom(values)
        start = self._clock()
        self._function(*self._arguments)
        return float(max(self._clock() - start, 1))

    def result(self) -> np.ndarray:
        values, storage = self._result.numpy(), self._output
        if isinstance(storage, Flat):
            return values
        return values.reshape(-1, storage.channels)[:, : storage.c]


def _empty(like: np.ndarray) -> Any:
    return tvm.runtime.empty(like.shape, str(like.dtype))


def _codes(kernel: Kernel) -> list[np.ndarray]:
    """Any inputs the kernel may have: its time does not depend on them."""
    assert kernel.variants is not None
    rng = np.random.default_rng(0)
    first, *others = kernel.inputs
    bounds = [kernel.variants.bounds]
    bounds += [(np.iinfo(s.dtype).min, np.iinfo(s.dtype).max) for s in others]
    return [
        rng.integers(low, high, storage.size, storage.dtype, endpoint=True)
        for storage, (low, high) in zip((first, *others), bounds, strict=True)
    ]
