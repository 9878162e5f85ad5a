"""Kernel names: `<out>_<in>_<op>_<shapes>_<digest>__<idiom>`.

The digest covers everything the code depends on, so equal names mean equal code.
"""

from __future__ import annotations

import hashlib
from typing import Any

from fxquant.targets import Target
from tvm_backend.call import Value
from tvm_backend.layout import Flat

SHORT = {
    "uint8": "qu8", "int8": "qs8", "uint16": "qu16", "int16": "qs16", "int32": "s32",
    "int64": "s64", "float32": "f32",
}  # fmt: skip


def kernel_name(
    op: str, inputs: tuple[Value, ...], output: Value, target: Target, *details: Any
) -> str:
    """Name of a kernel.

    Args:
        op: Operator.
        inputs: Activation operands.
        output: Result.
        target: The device.
        *details: Everything else the code depends on; must have a faithful `repr`.
    """
    kinds = "_".join(dict.fromkeys(SHORT[v.storage.dtype] for v in inputs))
    operands = [
        (v.shape, v.storage, v.storage.dtype, isinstance(v.storage, Flat))
        for v in (*inputs, output)
    ]
    code = op, operands, output.fill, details
    digest = hashlib.sha256(repr(code).encode()).hexdigest()[:10]
    return (
        f"{SHORT[output.storage.dtype]}_{kinds}_{op}_{output.storage}_{digest}__{target.mac.name}"
    )
