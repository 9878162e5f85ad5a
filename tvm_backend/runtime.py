"""Compiled: a network that can be called, exported and emulated."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import ConfigError, TargetError
from fxquant.targets import Target
from tvm_backend import artefact
from tvm_backend.build import Built, build
from tvm_backend.devices import missing_features
from tvm_backend.manifest import Summary
from tvm_backend.program import Program
from tvm_backend.signature import Array, Signature, as_tensor
from tvm_backend.standalone import Standalone, build_standalone
from tvm_backend.threads import check_threads, use_threads
from tvm_backend.tvm_api import relax, tvm

_ALIGNMENT = 64  # bytes; what compiled functions may assume


class Compiled:
    """A compiled network; call it with torch tensors or numpy arrays.

    Attributes:
        target: The device it is for.
        signature: Its inputs and outputs.
        threads: Threads its parallel loops use.
    """

    def __init__(
        self,
        target: Target,
        signature: Signature,
        threads: int,
        *,
        program: Program | None = None,
        module: Any = None,
        summary: Summary | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.target, self.signature, self.threads = target, signature, threads
        self._program, self._summary = program, summary
        self._built: Built | None = None
        self._machine: Any = None
        self._emulated: Standalone | None = None
        if program is not None and not missing_features(target):
            self._built = build(program, progress)
            self._machine = relax.VirtualMachine(self._built.executable, tvm.cpu())["main"]
        elif module is not None:
            self._machine = relax.VirtualMachine(module, tvm.cpu())["main"]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{s.name}{list(s.shape)}" for s in self.signature.inputs)
        return f"Compiled({shapes}; target={self.target}, threads={self.threads})"

    @property
    def executable(self) -> Any:
        """The Relax executable (built now for devices other than this machine).

        Raises:
            ConfigError: The network was loaded from files.
        """
        if self._built is None:
            if self._program is None:
                raise ConfigError(
                    "a loaded network cannot be exported", remedy="copy the folder it came from"
                )
            self._built = build(self._program)
        return self._built.executable

    @property
    def summary(self) -> Summary:
        """Kernels and memory."""
        if self._summary is None:
            assert self._program is not None
            _ = self.executable
            assert self._built is not None
            self._summary = Summary(
                dict(self._program.kernel_counts), self._built.memory_bytes,
                self._program.weight_bytes,
            )  # fmt: skip
        return self._summary

    def __call__(self, *inputs: Array) -> Any:
        """Run the network.

        Args:
            *inputs: One array an input. A batch that is a multiple of the compiled one is run
                in slices.

        Returns:
            Outputs nested as the network returns them, of the inputs' kind.

        Raises:
            ConfigError: An input is wrong.
            TargetError: This machine cannot run the target.
        """
        missing = missing_features(self.target)
        if missing:
            raise TargetError(
                f"this machine cannot run code for {self.target}",
                why=f"it lacks {', '.join(missing)}",
                remedy="use compiled.run_emulated(*inputs), or compile for "
                "tvm_backend.host_target()",
            )
        return self._run(inputs, self._call)

    def run_emulated(self, *inputs: Array) -> Any:
        """Run the standalone program under the target's emulator (or natively if it has none).

        Raises:
            ConfigError: An input is wrong.
            TargetError: Emulator or compiler are absent, or the program failed.
            UnsupportedError: The network has float islands.
        """
        if self._emulated is None:
            if self._program is None:
                raise TargetError(
                    "a loaded network cannot be emulated",
                    why="the exported files hold no standalone program",
                    remedy="compile the network again in this process",
                )
            folder = tempfile.mkdtemp(prefix="fxquant-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._emulated = build_standalone(self._program, Path(folder))
        return self._run(inputs, self._emulated.run)

    def export(self, folder: str | Path) -> Path:
        """Write `net.so` and `manifest.json`; returns the folder.

        Raises:
            ConfigError: The network was loaded from files itself.
            TargetError: The target's compiler is absent or fails.
        """
        executable = self.executable
        return artefact.write(Path(folder), executable, self.target, self.signature, self.summary)

    def _run(
        self, inputs: tuple[Array, ...], run: Callable[[list[Tensor]], list[np.ndarray]]
    ) -> Any:
        as_numpy = any(isinstance(x, np.ndarray) for x in inputs)
        tensors = [as_tensor(x, i) for i, x in enumerate(inputs)]
        count = self.signature.slices(tensors)
        parts = []
        for i in range(count):
            batches = [
                x if count == 1 else x[i * spec.shape[0] : (i + 1) * spec.shape[0]]
                for x, spec in zip(tensors, self.signature.inputs, strict=True)
            ]
            parts.append(run(batches))
        results: list[Any] = []
        for leaf, spec in enumerate(self.signature.outputs):
            pieces = [part[leaf].reshape(spec.shape) for part in parts]
            array = pieces[0] if count == 1 else np.concatenate(pieces)
            results.append(array if as_numpy else torch.from_numpy(array))
        return self.signature.nest(results)

    def _call(self, inputs: list[Tensor]) -> list[np.ndarray]:
        use_threads(self.threads)
        results = self._machine(*(_aligned(x) for x in inputs))
        return [result.numpy() for result in results]


def _aligned(x: Tensor) -> Any:
    """A flat TVM tensor that shares memory with `x` where its layout and alignment allow."""
    x = x.contiguous().reshape(-1)
    if x.data_ptr() % _ALIGNMENT:
        x = x.clone()
    if x.data_ptr() % _ALIGNMENT:
        return tvm.runtime.tensor(x.numpy())
    return tvm.runtime.from_dlpack(x)


def load(folder: str | Path, *, threads: int | None = None) -> Compiled:
    """Load an exported network.

    Args:
        folder: What `Compiled.export` wrote.
        threads: Threads that parallel loops use; by default all processors.

    Raises:
        FileFormatError: A file is absent, damaged or of a newer version.
    """
    manifest, module = artefact.read(Path(folder))
    count = check_threads(threads)
    return Compiled(
        manifest.target, manifest.signature, count, module=module, summary=manifest.summary
    )
