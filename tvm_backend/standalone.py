"""A network as a program of its own: kernels object, weights, C driver; no TVM on the device.

The kernels are lowered without TVM's packed calling convention, so the object has no undefined
symbols. Files written: `kernels.o`, `weights.bin` and `weights.S` (`.incbin`), `model.h`,
`model.c`, `main.c` and the linked `model`.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fxquant.errors import TargetError, UnsupportedError
from fxquant.targets import Target
from tvm_backend.devices import llvm_target
from tvm_backend.kernel import Abi
from tvm_backend.program import Island, Program
from tvm_backend.signature import Signature, signature_of
from tvm_backend.standalone_source import Weights, main_source, model_source, weights_source
from tvm_backend.tvm_api import PASS_CONFIG, s_tir, tirx, tvm

_S, _X = s_tir.transform, tirx.transform
BARE_PASSES = (
    _S.CanonicalizeLoop(),
    _S.LowerInitBlock(),
    _S.PlanAndUpdateBufferAllocationLocation(),
    _S.ConvertBlocksToOpaque(),
    _S.CompactBufferAllocation(),
    _S.LowerMatchBuffer(),
    _S.StmtSimplify(),
    _S.LowerOpaqueBlock(),
    _X.FlattenBuffer(),
    _X.NarrowDataType(32),
    _S.LoopPartition(),
    _X.VectorizeLoop(True),
    _S.HoistIfThenElse(),
    _X.UnrollLoop(),
    _S.RenormalizeSplitPattern(),
    _X.StmtSimplify(),
    _X.RemoveNoOp(),
    _S.RewriteUnsafeSelect(),
    _X.CommonSubexprElim(),
    _X.VerifyMemory(),
    _X.LowerTVMBuiltin(),
    _X.LowerIntrin(),
)


@dataclass(frozen=True, slots=True)
class Standalone:
    """A linked program.

    Attributes:
        folder: Where its files are.
        target: The device.
        signature: Inputs and outputs.
        arena_bytes: Memory of intermediate values.
    """

    folder: Path
    target: Target
    signature: Signature
    arena_bytes: int

    def run(self, inputs: list[Tensor]) -> list[np.ndarray]:
        """Run it, under the target's emulator if it has one.

        Args:
            inputs: One tensor of the compiled shape an input.

        Raises:
            TargetError: The emulator is absent or the program failed.
        """
        for i, x in enumerate(inputs):
            x.contiguous().numpy().tofile(self.folder / f"input{i}.bin")
        names = [f"input{i}.bin" for i in range(len(inputs))]
        names += [f"output{i}.bin" for i in range(len(self.signature.outputs))]
        done = subprocess.run(
            [*_emulator(self.target), "./model", *names],
            cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise TargetError(
                f"the standalone program for {self.target} failed",
                where=str(self.folder / "model"),
                why=f"exit status {done.returncode}: {done.stderr.strip()[:500]}",
                remedy="check emulator and C compiler of the target",
            )
        return [
            np.fromfile(self.folder / f"output{i}.bin", spec.dtype).reshape(spec.shape)
            for i, spec in enumerate(self.signature.outputs)
        ]


def _emulator(target: Target) -> list[str]:
    if not target.emulator:
        return []
    return [_tool(target.emulator, target), "-cpu", "max"]


def _tool(name: str, target: Target) -> str:
    if shutil.which(name) is None:
        raise TargetError(
            f"{name} is not installed",
            why=f"target {target} needs it",
            remedy=f"install {name}, e.g. with the system's package manager",
        )
    return name


def build_standalone(program: Program, folder: Path) -> Standalone:
    """Write and link the standalone program.

    Args:
        program: From `lower`.
        folder: Where to write; made if absent.

    Raises:
        UnsupportedError: The network has float islands.
        TargetError: The target's compiler is absent or fails.
    """
    islands = [step for step in program.steps if isinstance(step, Island)]
    if islands:
        raise UnsupportedError(
            "a network with float islands has no standalone form",
            where=", ".join(island.name for island in islands),
            why="float operators are compiled by Relax and need its runtime",
            remedy="quantize these operators, or use the Relax build (compiled.export)",
        )
    folder.mkdir(parents=True, exist_ok=True)
    compile_kernels(program).write_to_file(str(folder / "kernels.o"), "o")
    weights = Weights.of(program)
    weights.data.tofile(folder / "weights.bin")
    (folder / "weights.S").write_text(weights_source())
    signature = signature_of(program)
    source, arena_bytes = model_source(program, weights)
    (folder / "model.c").write_text(source)
    (folder / "model.h").write_text("void model_run(void *const *inputs, void *const *outputs);\n")
    (folder / "main.c").write_text(main_source(signature))
    _link(program.target, folder)
    return Standalone(folder, program.target, signature, arena_bytes)


def compile_kernels(program: Program) -> Any:
    """All kernels as one LLVM module of C functions over raw pointers."""
    target = llvm_target(program.target)
    functions = {name: kernel.build(Abi.BARE) for name, kernel in program.kernels.items()}
    module = _X.BindTarget(target.with_host(target))(tvm.IRModule(functions))
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        module = tvm.ir.transform.Sequential(list(BARE_PASSES))(module)
        return tvm.get_global_func("target.build.llvm")(module, target)


def _link(target: Target, folder: Path) -> None:
    compiler = _tool(target.compiler or "cc", target)
    command = [compiler, "-O2", "-o", "model", "main.c", "model.c", "weights.S", "kernels.o"]
    command += ["-static"] if target.emulator else []
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(
            f"linking for {target} failed",
            where=" ".join(command),
            why=done.stderr.strip()[:1000],
            remedy="check the target's C compiler",
        )
