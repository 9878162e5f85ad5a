"""The passes of the host path.

The stock Relax pipeline expects schedulable blocks in every PrimFunc and aborts on kernels, hence
own pass lists.
"""

from __future__ import annotations

from typing import Any

from tvm_backend.tvm_api import relax, tvm

_X = relax.transform


def _sequence(*passes: Any) -> Any:
    return tvm.transform.Sequential(list(passes))


# Operators of float islands become PrimFuncs.
IMPORT = _sequence(
    relax.backend.DispatchSortScan(), _X.LegalizeOps(), _X.AnnotateTIROpPattern(),
    _X.FoldConstant(), _X.FuseOps(), _X.FuseTIR(),
)  # fmt: skip
# Values get their memory.
PLAN = _sequence(
    _X.ToNonDataflow(), _X.RemovePurityChecking(), _X.CallTIRRewrite(), _X.StaticPlanBlockMemory()
)
# What is left becomes calls of the virtual machine.
LOWER = _sequence(
    _X.LowerAllocTensor(), _X.KillAfterLastUse(), _X.LowerRuntimeBuiltin(), _X.ComputePrimValue(),
    _X.VMShapeLower(), _X.AttachGlobalSymbol(),
)  # fmt: skip
