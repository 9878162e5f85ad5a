"""The only importer of tvm: the names this backend uses, in one place, and their pitfalls."""

from __future__ import annotations

import tvm
from tvm import relax, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

# StorageRewrite drops the annotation that keeps accumulators in registers.
PASS_CONFIG = {"tirx.disable_storage_rewrite": True}
IN_REGISTERS = {"disable_lower_builtin": True}

__all__ = ["IN_REGISTERS", "PASS_CONFIG", "IRBuilder", "T", "relax", "s_tir", "tirx", "tvm"]
