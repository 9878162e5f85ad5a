"""Compiled: a network that can be called, exported and emulated."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import ConfigError, TargetError
from fxquant.targets import Target
from tvm_backend import artefact
from tvm_backend.build import Built, build
from tvm_backend.devices import missing_features
from tvm_backend.manifest import RELAX, STANDALONE, Summary
from tvm_backend.profile import KernelTiming, PlacedValue, memory_map, time_kernels
from tvm_backend.program import Program
from tvm_backend.signature import Array, Signature, as_tensor
from tvm_backend.standalone import DEFAULT_NAME, Standalone, export_standalone
from tvm_backend.threads import check_threads, use_threads
from tvm_backend.tuning import Replayed
from tvm_backend.tvm_api import relax, tvm

_ALIGNMENT = 64  # bytes; what compiled functions may assume


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a network occupies while it runs, without code and Python.

    Attributes:
        weights: Weights, biases, tables.
        intermediates: Values between kernels, as planned, those inside float islands included; and
            the largest workspace of a kernel, of one thread.
        boundary: Inputs and outputs.
    """

    weights: int
    intermediates: int
    boundary: int

    @property
    def peak(self) -> int:
        """All of it: nothing is given back before the end."""
        return self.weights + self.intermediates + self.boundary


class Compiled:
    """A compiled network; call it with torch tensors or numpy arrays.

    Any thread may call it. Calls wait for each other: the intermediate values have one place.
    Networks compiled (or loaded) once a thread run at the same time.

    Attributes:
        target: The device it is for.
        signature: Its inputs and outputs.
        threads: Threads its parallel loops use.
        replayed: Which layers took their schedule from a file of `tune`; None without a file.
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
        replayed: Replayed | None = None,
    ) -> None:
        self.target, self.signature, self.threads = target, signature, threads
        self.replayed = replayed
        self._program, self._summary = program, summary
        self._built: Built | None = None
        self._machine: Any = None
        self._emulated: Standalone | None = None
        self._running = threading.Lock()
        if program is not None and not missing_features(target):
            self._built = build(program, progress)
            self._machine = relax.VirtualMachine(self._built.executable, tvm.cpu())["main"]
        elif module is not None:
            self._machine = relax.VirtualMachine(module, tvm.cpu())["main"]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{s.name}{list(s.shape)}" for s in self.signature.inputs)
        return f"Compiled({shapes}; target={self.target}, threads={self.threads})"

    def __reduce__(self) -> NoReturn:
        """Refuse copies and pickles: machine code belongs to its process."""
        raise ConfigError(
            "a compiled network cannot be copied or pickled",
            why="its code belongs to this process",
            remedy="export it, and load the folder where it is needed",
        )

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

    @property
    def memory(self) -> Memory:
        """Bytes of one inference."""
        summary, signature = self.summary, self.signature
        boundary = sum(spec.nbytes for spec in (*signature.inputs, *signature.outputs))
        return Memory(summary.weight_bytes, summary.memory_bytes, boundary)

    def __call__(self, *inputs: Array) -> Any:
        """Run the network.

        Args:
            *inputs: One array an input. A batch that is a multiple of the compiled one is run
                in slices.

        Returns:
            Outputs nested as the network returns them, of the inputs' kind.

        Raises:
            ConfigError: An input is wrong, or the process was forked from one that ran a network,
                and this one has several threads.
            TargetError: This machine cannot run the target.
        """
        self._check_machine()
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
            self._emulated = export_standalone(self._program, Path(folder))
        return self._run(inputs, self._emulated.run)

    def memory_map(self) -> tuple[PlacedValue, ...]:
        """Where the intermediate values of the standalone form lie, in execution order.

        Raises:
            ConfigError: The network was loaded from files.
        """
        return memory_map(self._lowered("be looked into"))

    def profile(self, *inputs: Array, rounds: int = 15) -> tuple[KernelTiming, ...]:
        """Time every kernel on this machine, in execution order.

        Args:
            *inputs: One array of the compiled shape an input.
            rounds: How often to run the network.

        Raises:
            ConfigError: An input is wrong, or the network was loaded from files.
            TargetError: This machine cannot run the target.
        """
        program = self._lowered("be profiled")
        self._check_machine()
        if rounds < 1:
            raise ConfigError(f"rounds={rounds} leaves nothing to time", remedy="run it once")
        tensors = [as_tensor(x, i) for i, x in enumerate(inputs)]
        if self.signature.slices(tensors) != 1:
            raise ConfigError(
                "a profile is of one run of the network", remedy="pass inputs of the compiled batch"
            )
        with self._running:
            use_threads(self.threads)
            return time_kernels(program, self.executable, [_aligned(x) for x in tensors], rounds)

    def _lowered(self, what: str) -> Program:
        if self._program is None:
            raise ConfigError(f"a loaded network cannot {what}", remedy="compile the network again")
        return self._program

    def _check_machine(self) -> None:
        missing = missing_features(self.target)
        if missing:
            raise TargetError(
                f"this machine cannot run code for {self.target}",
                why=f"it lacks {', '.join(missing)}",
                remedy="use compiled.run_emulated(*inputs), or compile for "
                "tvm_backend.host_target()",
            )

    def export(
        self, folder: str | Path, form: str = RELAX, *, name: str | None = None,
        shared: bool = False,
    ) -> Path:  # fmt: skip
        """Write the network to files; returns the folder.

        Files of an earlier export into the folder are removed, unless they were changed since.

        Args:
            folder: Where to write; made if absent.
            form: "relax" for `net.so` that `tvm_backend.load` reads; "standalone" for a C library
                that needs neither Python nor TVM (see `tvm_backend/standalone/library.py`).
            name: Name of a standalone library, a C identifier; by default "net".
            shared: Also make `<name>.so` of a standalone library.

        Raises:
            ConfigError: The network was loaded from files itself, or an argument is wrong.
            TargetError: The target's compiler is absent or fails.
            UnsupportedError: The network has float islands and the form is "standalone".
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is no folder", remedy="name a folder to export into")
        if form == STANDALONE:
            if self._program is None:
                raise ConfigError(
                    "a loaded network has no standalone form", remedy="compile the network again"
                )
            return export_standalone(
                self._program, folder, DEFAULT_NAME if name is None else name, shared
            ).folder
        if form != RELAX or name is not None or shared:
            raise ConfigError(
                f"export(form={form!r}, name={name!r}, shared={shared}) is not possible",
                why="forms are 'relax' and 'standalone'; name and shared belong to 'standalone'",
                remedy="use form='standalone'",
            )
        executable = self.executable
        return artefact.write(folder, executable, self.target, self.signature, self.summary)

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
        aligned = [_aligned(x) for x in inputs]
        with self._running:
            use_threads(self.threads)
            results = self._machine(*aligned)
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
        threads: Threads that parallel loops use; by default one a physical core.

    Raises:
        FileFormatError: A file is absent, damaged or of a newer version.
    """
    manifest, module = artefact.read(Path(folder))
    count = check_threads(threads)
    return Compiled(
        manifest.target, manifest.signature, count, module=module, summary=manifest.summary
    )
