"""Does an imported island compute what torch computes?

TVM's importer ignores arguments it does not know, and leaves operators to the code generator that
has none for them. So every island is compiled once for any processor and run on random values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from tvm_backend.pipeline import LOWER, PLAN
from tvm_backend.tvm_api import relax, tvm

_TOLERANCE = 1e-3  # of an element, and of the largest one
_STRAY = 1e-3  # share of elements that may differ: those on the edge of a step
_HOST = {"kind": "llvm", "opt-level": 1}  # the fastest to compile and run once


def difference(
    module: GraphModule, imported: Any, examples: Sequence[Tensor], constants: Sequence[Tensor]
) -> str:
    """What is wrong with an island's results; empty if nothing is.

    Args:
        module: The island, taking its inputs and then its constants.
        imported: The Relax module made from it.
        examples: Tensors like its inputs.
        constants: Its constants.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in examples
    ]
    with torch.no_grad():
        expected = module(*inputs, *constants)
    executable = relax.build(PLAN(imported), target=tvm.target.Target(_HOST), relax_pipeline=LOWER)
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    results = main(*(tvm.runtime.tensor(x.numpy()) for x in (*inputs, *constants)))
    pairs = zip((torch.from_numpy(result.numpy()) for result in results), expected, strict=True)
    return next(filter(None, (_compare(result, wanted) for result, wanted in pairs)), "")


def _compare(result: Tensor, wanted: Tensor) -> str:
    if result.shape != wanted.shape:
        return f"TVM gives it the shape {tuple(result.shape)}, torch {tuple(wanted.shape)}"
    largest = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 0.0
    close = torch.isclose(result, wanted, _TOLERANCE, _TOLERANCE * largest, equal_nan=True)
    stray = 1 - close.double().mean().item()
    if stray <= _STRAY:
        return ""
    return f"TVM computes something else than torch: {stray:.1%} of its elements differ"
