"""tvm_backend: integer networks of fxquant compiled through Apache TVM."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch.fx import GraphModule

from fxquant.errors import ConfigError
from fxquant.targets import Target
from tvm_backend.devices import check_target, host_target
from tvm_backend.lower import lower
from tvm_backend.progress import reporter
from tvm_backend.runtime import Compiled, load
from tvm_backend.signature import signature_of
from tvm_backend.threads import check_threads


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
    progress: bool = False,
    winograd: bool = True,
) -> Compiled:
    """Compile a quantized network to integer kernels.

    Args:
        quantized: Result of `fxquant.convert`, or an INTEGER graph.
        target: A constant of `fxquant.targets`; by default what suits this machine.
        threads: Threads that parallel loops use; by default one a physical core.
        progress: Show a progress bar.
        winograd: Let the cost model choose Winograd kernels for 3x3 layers where they are faster.
            Results are the same bit for bit; the weights of such a layer take up to 8 times the
            memory.

    Raises:
        ConfigError: `quantized` is no quantized network, or `threads` is no number of threads.
        UnsupportedError: Some operators cannot be compiled; the message lists all.
        TargetError: LLVM does not know the target.
    """
    graph = quantized if isinstance(quantized, GraphModule) else None
    if graph is None and isinstance(quantized, HasIntegerGraph):
        graph = quantized.integer
    if graph is None:
        raise ConfigError(
            f"{type(quantized).__name__} cannot be compiled",
            remedy="pass the result of fxquant.convert",
        )
    device = check_target(host_target() if target is None else target)
    count = check_threads(threads)
    with reporter(progress) as report:
        program = lower(graph, device, report, winograd)
        return Compiled(device, signature_of(program), count, program=program, progress=report)


__all__ = ["Compiled", "compile", "host_target", "load"]
