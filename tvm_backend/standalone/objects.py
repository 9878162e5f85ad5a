"""Object files without any tool of the target: LLVM writes code and weights for any triple.

Kernels are lowered without TVM's packed calling convention: plain C functions over raw pointers,
which need nothing but memcpy and memset.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fxquant.errors import TargetError
from fxquant.targets import Target
from tvm_backend.devices import llvm_target
from tvm_backend.tvm_api import PASS_CONFIG, last_line, s_tir, tirx, tvm

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

# The module must carry the options of the target: the object's ABI flags follow from them.
_WEIGHTS_MODULE = """{header}
module asm ".section .rodata.{symbol},\\22a\\22,%progbits"
module asm ".balign 64"
module asm ".globl {symbol}"
module asm ".hidden {symbol}"
module asm ".type {symbol}, %object"
module asm "{symbol}:"
module asm ".incbin \\22{path}\\22"
module asm ".size {symbol}, {size}"
"""

# TVM adds conversions of float16 to every module, under the names of the compiler's own, which
# another program's must not become.
_WEAK = re.compile(r"^define weak\b", re.MULTILINE)


def compile_functions(functions: Mapping[str, Any], target: Target) -> Any:
    """PrimFuncs over raw pointers as one LLVM module of C functions.

    Args:
        functions: By symbol.
        target: The device.

    Raises:
        TargetError: LLVM cannot generate the code.
    """
    device = llvm_target(target)
    named = {
        symbol: function.with_attr("global_symbol", symbol)
        for symbol, function in functions.items()
    }
    module = _X.BindTarget(device.with_host(device))(tvm.IRModule(named))
    try:
        with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
            module = tvm.ir.transform.Sequential(list(BARE_PASSES))(module)
            return tvm.get_global_func("target.build.llvm")(module, device)
    except RuntimeError as error:
        raise TargetError(
            f"code generation for {target} failed",
            why=last_line(error),
            remedy="check the target's LLVM options",
        ) from error


def write_objects(
    kernels: Path, functions: Mapping[str, Any], weights: Path, symbol: str, data: np.ndarray,
    target: Target,
) -> None:  # fmt: skip
    """Write the object of the kernels and the object of the weights.

    Args:
        kernels: Object file of the kernels.
        functions: PrimFuncs by symbol.
        weights: Object file of the weights.
        symbol: Symbol of the weights.
        data: uint8, the weights.
        target: The device.

    Raises:
        TargetError: LLVM cannot generate the code.
    """
    text = compile_functions(functions, target).inspect_source("ll")
    header = "\n".join(re.findall(r"^(?:target |![\w.]+ = |!\d+ = ).*$", text, re.MULTILINE))
    with tempfile.TemporaryDirectory(prefix="fxquant-") as folder:
        binary, source = Path(folder, "weights.bin"), Path(folder, "module.ll")
        data.tofile(binary)
        of_weights = _WEIGHTS_MODULE.format(
            header=header, symbol=symbol, path=binary, size=data.size
        )
        for path, module in ((kernels, _WEAK.sub("define internal", text)), (weights, of_weights)):
            source.write_text(module)
            loaded = tvm.get_global_func("ffi.Module.load_from_file.ll")(str(source), "ll")
            loaded.write_to_file(str(path), "o")
