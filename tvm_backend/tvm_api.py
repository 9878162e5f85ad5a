"""The only importer of tvm: the names this backend uses, in one place, and their pitfalls."""

from __future__ import annotations

from typing import Any

import tvm as _tvm
from tvm import relax as _relax
from tvm import s_tir as _s_tir
from tvm import tirx as _tirx
from tvm.relax.frontend.torch import from_exported_program as _from_exported_program
from tvm.script.ir_builder import IRBuilder as _IRBuilder
from tvm.tirx.script.builder import ir as _T
from tvm_ffi import load_module as _load_module

# TVM's own annotations are wrong in many places; here its objects are untyped.
tvm: Any = _tvm
relax: Any = _relax
s_tir: Any = _s_tir
tirx: Any = _tirx
IRBuilder: Any = _IRBuilder
T: Any = _T
from_exported_program: Any = _from_exported_program
load_module: Any = _load_module  # tvm.runtime's would follow links

# Many of TVM's passes are Python functions called from C++. An exception on its way out of them
# keeps its type only if TVM knows it; Ctrl-C would come out as a RuntimeError.
tvm.error.register_error(KeyboardInterrupt)

# StorageRewrite drops the annotation that keeps accumulators in registers.
PASS_CONFIG = {"tirx.disable_storage_rewrite": True}
IN_REGISTERS = {"disable_lower_builtin": True}


def last_line(error: Exception) -> str:
    """The last line of an error of TVM, which says what happened; those before are a stack."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


__all__ = [
    "IN_REGISTERS",
    "PASS_CONFIG",
    "IRBuilder",
    "T",
    "from_exported_program",
    "last_line",
    "load_module",
    "relax",
    "s_tir",
    "tirx",
    "tvm",
]
