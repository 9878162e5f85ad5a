"""Compile one Kernel, run it and bring its result back as a torch tensor, on any target.

Targets the host can execute run natively (PACKED ABI through `tvm.compile`, or BARE ABI with
guard pages behind every buffer); foreign targets run as a static binary under qemu-user, and x86
ones whose instructions this machine lacks under `FXQUANT_X86_EMULATOR`, if that names a command.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxquant.targets import Target
from tvm_backend.devices import missing_features
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.layout import Flat, Image, Storage, code_offset
from tvm_backend.tvm_api import PASS_CONFIG, s_tir, tirx, tvm

GARBAGE = 0xA7  # what padding channels hold: a kernel must not depend on them
SENTINEL = 0x5C  # fills output buffers before the call
X86_EMULATOR = shlex.split(os.environ.get("FXQUANT_X86_EMULATOR", ""))


def to_storage(codes: torch.Tensor, storage: Storage, zero_point: int = 0) -> np.ndarray:
    """Codes in torch's axis order -> flat storage array; halo = zero point, padding = garbage.

    Args:
        codes: Codes, or accumulators and floats, which are stored as they are.
        storage: Where they go; its type decides about the offset of stored codes.
        zero_point: Zero point (a code) that fills the halo.
    """
    offset = code_offset(storage.dtype)
    values = codes.numpy().astype(np.float64 if storage.dtype == "float32" else np.int64) + offset
    if isinstance(storage, Flat):
        return np.ascontiguousarray(values.astype(storage.dtype)).reshape(-1)
    image = storage
    stored = np.dtype(image.dtype)
    garbage = np.full(image.size * stored.itemsize, GARBAGE, np.uint8).view(stored)
    out = garbage.reshape(image.n, image.rows, image.cols, image.channels)
    out[..., : image.c] = zero_point + offset
    top, _, left, _ = image.halo
    inner = out[:, top : top + image.h, left : left + image.w]
    inner[..., : image.c] = _nhwc(values, image)
    return out.reshape(-1)


def _nhwc(values: np.ndarray, image: Image) -> np.ndarray:
    match values.ndim:
        case 4:
            return values.transpose(0, 2, 3, 1)
        case 3:
            return values[:, None]
        case _:
            return values.reshape(image.n, 1, 1, image.c)


def from_storage(array: np.ndarray, storage: Storage, torch_shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `to_storage`: halo and padding channels dropped, plain codes."""
    offset = code_offset(storage.dtype)
    dtype = {"int8": "uint8", "int16": "uint16"}.get(storage.dtype, storage.dtype)
    if isinstance(storage, Flat):
        plain = array.reshape(torch_shape)
    else:
        image = storage
        top, _, left, _ = image.halo
        full = array.reshape(image.n, image.rows, image.cols, image.channels)
        inner = full[:, top : top + image.h, left : left + image.w, : image.c]
        plain = inner.transpose(0, 3, 1, 2) if len(torch_shape) == 4 else inner
        plain = plain.reshape(torch_shape)
    wide = plain.astype(np.float64 if dtype == "float32" else np.int64) - offset
    return torch.from_numpy(np.ascontiguousarray(wide.astype(dtype)))


def assert_halo(array: np.ndarray, image: Image, zero_point: int) -> None:
    """Every value channel of the halo holds the stored zero point."""
    top, _, left, _ = image.halo
    full = array.reshape(image.n, image.rows, image.cols, image.channels)[..., : image.c].copy()
    stored = zero_point + code_offset(image.dtype)
    full[:, top : top + image.h, left : left + image.w] = stored
    wrong = np.argwhere(full != stored)
    assert wrong.size == 0, f"halo differs from the zero point at (n, row, col, c) {wrong[:5]}"


def require(target: Target) -> None:
    """Skip the test unless `target` can run here, natively or under its own emulator."""
    if target.emulator:
        for tool in (target.emulator, target.compiler):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed")
        return
    missing = missing_features(target)
    if missing:
        pytest.skip(f"host lacks {', '.join(missing)}")


def emulator_of(target: Target) -> list[str]:
    """The command that runs a kernel's executable, or nothing where the test process calls it."""
    if target.emulator:
        return [target.emulator, "-cpu", "max"]
    return X86_EMULATOR if target.is_x86 and missing_features(target) else []


def run_kernel(
    kernel: Kernel, target: Target, *inputs: np.ndarray, abi: Abi = Abi.PACKED
) -> np.ndarray:
    """Compile and call a kernel.

    Args:
        kernel: The kernel.
        target: Device; emulated ones always use the BARE ABI.
        inputs: One flat storage array an input.
        abi: Calling convention on the host. BARE puts a guard page behind every buffer.

    Returns:
        The flat output storage array.
    """
    emulator = emulator_of(target)
    if target.emulator or not emulator:
        require(target)
    arguments = [np.ascontiguousarray(a).reshape(-1) for a in (*inputs, *kernel.constants)]
    for array, storage in zip(arguments, kernel.inputs, strict=False):
        assert array.size == storage.size and array.dtype == storage.dtype
    out_bytes = kernel.output.size * np.dtype(kernel.output.dtype).itemsize
    output = np.full(out_bytes, SENTINEL, np.uint8).view(kernel.output.dtype)
    if emulator:
        return _run_emulated(kernel, target, emulator, arguments, output)
    if abi is Abi.BARE:
        return _run_guarded(kernel, target, arguments, output)
    return _run_packed(kernel, target, arguments, output)


def tvm_target(target: Target) -> tvm.target.Target:
    """The TVM target of a device record."""
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in target.llvm}
    return tvm.target.Target({"kind": "llvm", **options})


def _run_packed(
    kernel: Kernel, target: Target, arguments: list[np.ndarray], output: np.ndarray
) -> np.ndarray:
    function = compile_packed(kernel, target)
    tensors = [tvm.runtime.tensor(a) for a in (*arguments, output)]
    function(*tensors)
    return tensors[-1].numpy()


_functions: dict[tuple[str, str, Abi], Any] = {}


def compile_packed(kernel: Kernel, target: Target) -> Any:
    """Host function over TVM tensors: inputs, constants, output (flat); once a kernel name."""
    key = kernel.name, target.name, Abi.PACKED
    if key not in _functions:
        _functions[key] = _compile_packed(kernel, target)
    return _functions[key]


def _compile_packed(kernel: Kernel, target: Target) -> Any:
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        built = tvm.compile(kernel.build(Abi.PACKED), target=tvm_target(target))
    return getattr(built, "mod", built)[kernel.name]


BARE_PASSES = (
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.CompactBufferAllocation(),
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    s_tir.transform.LoopPartition(),
    tirx.transform.VectorizeLoop(True),
    s_tir.transform.HoistIfThenElse(),
    tirx.transform.UnrollLoop(),
    s_tir.transform.RenormalizeSplitPattern(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.CommonSubexprElim(),
    tirx.transform.VerifyMemory(),
    tirx.transform.LowerTVMBuiltin(),
    tirx.transform.LowerIntrin(),
)


def compile_bare(kernel: Kernel, target: Target) -> Any:
    """LLVM module with one C function over raw pointers: inputs, constants, output."""
    tgt = tvm_target(target)
    bind = tirx.transform.BindTarget(tgt.with_host(tgt))
    module = bind(tvm.IRModule({kernel.name: kernel.build(Abi.BARE)}))
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        module = tvm.ir.transform.Sequential(BARE_PASSES)(module)
        return tvm.get_global_func("target.build.llvm")(module, tgt)


def largest_loop(kernel: Kernel, target: Target, mnemonic: str) -> str:
    """Assembly of the innermost loop with most instructions of a name."""
    parts = compile_bare(kernel, target).inspect_source("asm").split("\n.LBB")
    bodies = [part.partition("\tb.ne\t")[0] for part in parts]
    return max(bodies, key=lambda body: body.count(f"\t{mnemonic}\t"))


def undefined_symbols(kernel: Kernel, target: Target) -> list[str]:
    """What the object of a BARE host kernel would need from libraries."""
    with tempfile.TemporaryDirectory() as folder:
        obj = Path(folder, "k.o")
        compile_bare(kernel, target).write_to_file(str(obj), "o")
        done = subprocess.run(["nm", "-u", obj], check=True, capture_output=True, text=True)
    return done.stdout.split()


class _GuardedBuffer:
    """Memory whose end (rounded up to 64 bytes from an aligned start) meets a PROT_NONE page."""

    def __init__(self, array: np.ndarray) -> None:
        page = mmap.PAGESIZE
        self.size = array.nbytes
        span = -(-max(self.size, 1) // page) * page
        self._map = mmap.mmap(-1, span + page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(base + span), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
        self.slack = -self.size % 64
        self.address = base + span - self.size - self.slack
        ctypes.memmove(self.address, array.ctypes.data, self.size)
        ctypes.memset(self.address + self.size, SENTINEL, self.slack)

    def take(self, dtype: np.dtype) -> np.ndarray:
        """Contents, after checking that nothing was written behind the end."""
        tail = ctypes.string_at(self.address + self.size, self.slack)
        assert tail == bytes([SENTINEL]) * self.slack, "write behind the end of a buffer"
        return np.frombuffer(ctypes.string_at(self.address, self.size), dtype).copy()


def _shared_function(kernel: Kernel, target: Target) -> Any:
    key = kernel.name, target.name, Abi.BARE
    if key not in _functions:
        with tempfile.TemporaryDirectory() as folder:
            obj, lib = Path(folder, "k.o"), Path(folder, "k.so")
            compile_bare(kernel, target).write_to_file(str(obj), "o")
            subprocess.run(["gcc", "-shared", "-o", lib, obj], check=True)
            function = getattr(ctypes.CDLL(str(lib)), kernel.name)
        function.restype = None
        _functions[key] = function
    return _functions[key]


def _run_guarded(
    kernel: Kernel, target: Target, arguments: list[np.ndarray], output: np.ndarray
) -> np.ndarray:
    function = _shared_function(kernel, target)
    buffers = [_GuardedBuffer(a) for a in (*arguments, output, *_workspace(kernel))]
    function(*(ctypes.c_void_p(b.address) for b in buffers))
    for array, buffer in zip(arguments, buffers, strict=False):
        assert (buffer.take(array.dtype) == array).all(), "a kernel wrote to one of its inputs"
    for buffer in buffers[len(arguments) + 1 :]:
        buffer.take(np.dtype(np.uint8))
    return buffers[len(arguments)].take(output.dtype)


def _workspace(kernel: Kernel) -> list[np.ndarray]:
    """Memory for a BARE kernel to work in, full of garbage."""
    sizes = [s.size * np.dtype(s.dtype).itemsize for s in kernel.workspace]
    return [np.full(size, GARBAGE, np.uint8) for size in sizes]


_MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static unsigned char *guarded(size_t size) {
  size_t page = 65536, span = (size + page - 1) / page * page;
  unsigned char *base = mmap(0, span + page, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(base + span, page, PROT_NONE)) exit(3);
  return base + span - (size + 63) / 64 * 64;
}
void NAME(PROTOTYPE);
int main(void) {
#ifdef __x86_64__
  syscall(158, 0x1023, 18); /* arch_prctl: permission to use matrix tiles, where there are any */
#endif
  static const size_t sizes[] = {SIZES};
  void *p[COUNT];
  for (int i = 0; i < COUNT; ++i) {
    p[i] = guarded(sizes[i]);
    if (fread(p[i], 1, sizes[i], stdin) != sizes[i]) return 2;
  }
  NAME(ARGUMENTS);
  size_t n = sizes[RESULT];
  return fwrite(p[RESULT], 1, n, stdout) == n ? 0 : 5;
}
"""


def _run_emulated(
    kernel: Kernel, target: Target, emulator: list[str], arguments: list[np.ndarray],
    output: np.ndarray,
) -> np.ndarray:  # fmt: skip
    buffers = [*arguments, output, *_workspace(kernel)]
    key = kernel.name, target.name, Abi.BARE
    if key not in _functions:
        _functions[key] = _link(kernel, target, [b.nbytes for b in buffers], len(arguments))
    with tempfile.TemporaryDirectory() as folder:
        executable = Path(folder, "k")
        executable.write_bytes(_functions[key])
        executable.chmod(0o700)
        stdin = b"".join(b.tobytes() for b in buffers)
        command = [*emulator, str(executable)]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} returned {done.returncode}: {done.stderr}"
    return np.frombuffer(done.stdout, output.dtype).copy()


def _link(kernel: Kernel, target: Target, sizes: list[int], result: int) -> bytes:
    """A static executable that reads all buffers and prints that of the result."""
    count = len(sizes)
    source = (
        _MAIN.replace("PROTOTYPE", ", ".join(["void *"] * count))
        .replace("ARGUMENTS", ", ".join(f"p[{i}]" for i in range(count)))
        .replace("SIZES", ", ".join(map(str, sizes)))
        .replace("COUNT", str(count))
        .replace("RESULT", str(result))
        .replace("NAME", kernel.name)
    )
    with tempfile.TemporaryDirectory() as folder:
        main, obj, executable = (Path(folder, name) for name in ("main.c", "k.o", "k"))
        main.write_text(source)
        compile_bare(kernel, target).write_to_file(str(obj), "o")
        command = [target.compiler or "gcc", "-O1", "-static", "-o", executable, main, obj]
        subprocess.run(command, check=True)
        return executable.read_bytes()
