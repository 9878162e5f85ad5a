"""Export of a network as a C library, and its example program run from Python.

Files of a library `net`:

    net.h  net.c                    C interface and its source, the driver
    objects/kernels.o, weights.o    made by LLVM, without any tool of the target
    net.o  net.a  [net.so]          driver, kernels and weights, by the target's C compiler
    main.c  CMakeLists.txt  net.pc  example and build files
    manifest.json                   contents, sizes, digests

A foreign target that names no compiler gets everything but `net.o`, `net.a` and `net.pc`; its
CMakeLists.txt makes the library wherever there is a compiler.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fxquant.errors import ConfigError, TargetError, UnsupportedError
from fxquant.targets import Target
from fxquant.version import __version__
from tvm_backend.kernel import Abi
from tvm_backend.layout import round_up
from tvm_backend.manifest import remove_exported
from tvm_backend.memory_plan import (
    ALIGNMENT,
    Lifetime,
    MemoryPlan,
    lifetimes,
    overwritten,
    plan_memory,
)
from tvm_backend.program import Island, Program, Step
from tvm_backend.signature import Signature, signature_of
from tvm_backend.standalone.bit_packing import widen_function
from tvm_backend.standalone.driver import (
    Model,
    api_symbols,
    driver_source,
    kernel_symbol,
    scratch_name,
    widen_symbol,
)
from tvm_backend.standalone.elf import undefined_symbols, write_archive
from tvm_backend.standalone.extras import cmake_source, main_source, pkg_config_source
from tvm_backend.standalone.header import Facts, header_source
from tvm_backend.standalone.manifest import write_manifest
from tvm_backend.standalone.objects import write_objects
from tvm_backend.standalone.tensors import interface
from tvm_backend.standalone.toolchain import compiler_of, compiler_version, emulator_of, run
from tvm_backend.standalone.weights import Weights, lay_out

DEFAULT_NAME = "net"
_LIBC = {"memcpy", "memmove", "memset"}
_C_FLAGS = ("-std=c99", "-O2", "-fPIC")
_C_HEADERS = (
    "assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal "
    "stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath "
    "threads time uchar wchar wctype"
).split()
_KERNELS, _WEIGHTS = "objects/kernels.o", "objects/weights.o"


@dataclass(frozen=True, slots=True)
class Standalone:
    """An exported library.

    Attributes:
        folder: Where its files are.
        name: Its name.
        target: The device.
        signature: Inputs and outputs.
        plan: Memory of intermediate values.
        linked: Whether the C compiler was there to make `<name>.o` and `<name>.a`.
    """

    folder: Path
    name: str
    target: Target
    signature: Signature
    plan: MemoryPlan
    linked: bool

    def build_example(self) -> Path:
        """Compile the example program; returns its path.

        Raises:
            TargetError: The target's compiler is absent or fails.
        """
        compiler = compiler_of(self.target)
        if compiler is None or not self.linked:
            raise TargetError(
                f"the example for {self.target} cannot be compiled",
                why="the target is foreign and names no C compiler",
                remedy="name one in the Target, or use the CMakeLists.txt beside the example",
            )
        static = ["-static"] if self.target.emulator else []
        command = [compiler, "-O2", *static, "-o", "main", "main.c", f"{self.name}.a"]
        run(command, self.folder)
        return self.folder / "main"

    def run(self, inputs: list[Tensor]) -> list[np.ndarray]:
        """Run the example program, under the target's emulator if it has one.

        Args:
            inputs: One tensor of the compiled shape an input.

        Raises:
            TargetError: Compiler or emulator are absent, or the program failed.
        """
        program = self.folder / "main"
        if not program.is_file():
            program = self.build_example()
        count = len(self.signature.outputs)
        with tempfile.TemporaryDirectory(prefix="fxquant-") as files:
            folder = Path(files)
            for i, x in enumerate(inputs):
                x.contiguous().numpy().tofile(folder / f"input{i}.bin")
            names = [f"input{i}.bin" for i in range(len(inputs))]
            names += [f"output{i}.bin" for i in range(count)]
            run([*emulator_of(self.target), str(program.resolve()), *names], folder)
            return [
                np.fromfile(folder / f"output{i}.bin", spec.dtype).reshape(spec.shape)
                for i, spec in enumerate(self.signature.outputs)
            ]


def export_standalone(
    program: Program, folder: Path, name: str = DEFAULT_NAME, shared: bool = False
) -> Standalone:
    """Write a network as a C library.

    Args:
        program: From `lower`.
        folder: Where to write; made if absent.
        name: Name of the library and prefix of everything in it: a C identifier.
        shared: Also make `<name>.so`.

    Raises:
        ConfigError: The name is no C identifier, or that of a header of C.
        UnsupportedError: The network has float islands.
        TargetError: The target's compiler is absent or fails.
    """
    _check_name(name)
    _check_program(program)
    target = program.target
    compiler = compiler_of(target)
    if shared and compiler is None:
        raise TargetError(
            f"a shared library for {target} cannot be made",
            why="the target is foreign and names no C compiler",
            remedy="name one in the Target, e.g. compiler='riscv64-linux-gnu-gcc'",
        )
    weights = lay_out(program)
    values = [*lifetimes(program), *_scratch(program, weights)]
    model = Model(program, weights, plan_memory(values), interface(program))
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    remove_exported(folder)
    files = [_KERNELS, _WEIGHTS, *_write_sources(folder, name, model, compiler is not None)]
    write_objects(
        folder / _KERNELS, _functions(name, model), folder / _WEIGHTS, f"{name}_weights",
        weights.data, target,
    )  # fmt: skip
    undefined = _check_symbols(undefined_symbols(folder / _KERNELS), target)
    if compiler is not None:
        files += _link(folder, name, compiler, shared)
    version = None if compiler is None else compiler_version(compiler)
    write_manifest(folder, name, model, values, files, undefined, version)
    return Standalone(folder, name, target, signature_of(program), model.plan, compiler is not None)


def _check_name(name: object) -> None:
    fits = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name)
    if not fits or name in ("main", "objects", *_C_HEADERS):
        raise ConfigError(
            f"{name!r} cannot be the name of a library",
            why="it names files, a header among them, and is the prefix of C functions",
            remedy="use at most 63 letters, digits and underscores, a letter first; not 'main' and "
            "no header of C",
        )


def _check_program(program: Program) -> None:
    islands = [step for step in program.steps if isinstance(step, Island)]
    if islands:
        raise UnsupportedError(
            "a network with float islands has no standalone form",
            where=", ".join(island.name for island in islands),
            why="float operators are compiled by Relax and need its runtime",
            remedy="quantize these operators, or use the Relax build (compiled.export)",
        )


def _check_symbols(undefined: list[str], target: Target) -> list[str]:
    """Kernels may use the C library's memory functions and the compiler's own helpers."""
    foreign = [s for s in undefined if s not in _LIBC and not s.startswith("__")]
    if foreign:
        raise TargetError(
            f"kernels for {target} need {', '.join(foreign)}",
            why="a standalone library may only need memcpy, memmove and memset",
            remedy="this is an error of the code generation; report it",
        )
    return undefined


def _scratch(program: Program, weights: Weights) -> list[Lifetime]:
    """Widened weights and the workspace of a kernel live during their own step."""
    widened = weights.scratch_bytes()
    sizes = {
        index: widened.get(index, 0) + sum(round_up(n, ALIGNMENT) for n in _workspace(step))
        for index, step in enumerate(program.steps)
    }
    return [Lifetime(scratch_name(i), nbytes, i, i) for i, nbytes in sizes.items() if nbytes]


def _workspace(step: Step | Island) -> tuple[int, ...]:
    return step.kernel.workspace_bytes if isinstance(step, Step) else ()


def _functions(name: str, model: Model) -> dict[str, object]:
    """All PrimFuncs by symbol. Kernels that run in place must not assume distinct memory."""
    shared = overwritten(model.program)
    functions = {}
    for kernel_name, kernel in model.kernels.items():
        function = kernel.build(Abi.BARE)
        if kernel_name in shared:
            function = function.with_attr("tirx.noalias", False)
        functions[kernel_symbol(name, kernel_name)] = function
    for bits in model.weights.widths:
        functions[widen_symbol(name, bits)] = widen_function(bits)
    return functions


def _write_sources(folder: Path, name: str, model: Model, linked: bool) -> list[str]:
    facts = Facts(name, str(model.program.target), __version__, max(model.plan.nbytes, 1))
    sources = {
        f"{name}.h": header_source(facts, model.tensors),
        f"{name}.c": driver_source(facts, model),
        "main.c": main_source(facts),
        "CMakeLists.txt": cmake_source(facts, linked),
        **({f"{name}.pc": pkg_config_source(facts)} if linked else {}),
    }
    for file, text in sources.items():
        (folder / file).write_text(text)
    return list(sources)


def _link(folder: Path, name: str, compiler: str, shared: bool) -> list[str]:
    """Compile the driver and combine it with kernels and weights."""
    with tempfile.TemporaryDirectory(prefix="fxquant-") as temporary:
        driver = str(Path(temporary, "driver.o"))
        run([compiler, *_C_FLAGS, "-c", "-o", driver, f"{name}.c"], folder)
        strip = "-Wl,--strip-debug"
        combine = [compiler, "-r", "-nostdlib", strip, "-o", f"{name}.o", driver]
        run([*combine, _KERNELS, _WEIGHTS], folder)
        write_archive(folder / f"{name}.a", [folder / f"{name}.o"])
        files = [f"{name}.o", f"{name}.a"]
        if shared:
            exports = Path(temporary, "exports")
            symbols = " ".join(f"{symbol};" for symbol in api_symbols(name))
            exports.write_text(f"{{ global: {symbols} local: *; }};\n")
            options = [
                f"--version-script={exports}", f"-soname={name}.so", "--gc-sections",
                "--no-undefined", "-z,noseparate-code", "--build-id=none", "--strip-all",
            ]  # fmt: skip
            flags = [f"-Wl,{option}" for option in options]
            command = [compiler, "-shared", "-nostartfiles", *flags, "-o", f"{name}.so"]
            run([*command, f"{name}.o"], folder)
            files.append(f"{name}.so")
    return files
