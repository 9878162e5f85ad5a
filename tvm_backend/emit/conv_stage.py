"""How a convolution multiplies and how it finishes, by the widths of its codes.

8-bit inputs use the target's idiom. 16-bit inputs accumulate in int32 where the actual weight codes
prove that it cannot overflow, else in int64. Where all codes have 8 bits the epilogue works on
int16 vectors; a 16-bit result or residual needs wider ones.
"""

from __future__ import annotations

import numpy as np
import torch

from fxquant.numerics.accumulator import fits_int32
from fxquant.numerics.width import WIDTH_8, WIDTH_16
from fxquant.targets import Target
from tvm_backend.emit.conv_assemble import fold_zero_point
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage, Requantize
from tvm_backend.emit.epilogue_isa import epilogue_isa
from tvm_backend.emit.wide_requantize import WideRequantize
from tvm_backend.layout import code_offset, code_width
from tvm_backend.macs import Mac, mac_of, staged_macs_of, wide_mac_of


def conv_macs(
    problem: ConvProblem, weight: np.ndarray, bias: np.ndarray, target: Target
) -> tuple[Mac, ...]:
    """The multiply-accumulates for a problem's input; the first serves every layer.

    Args:
        problem: Storages and geometry.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: `[O]`.
        target: Device.
    """
    if code_width(problem.source.dtype) is WIDTH_8:
        direct = (mac_of(idiom) for idiom in target.idioms)
        return (*direct, *staged_macs_of(target))
    folded = torch.from_numpy(fold_zero_point(problem, weight, bias, len(weight)))
    largest = -code_offset(problem.source.dtype)
    narrow = fits_int32(torch.from_numpy(weight), folded, largest, WIDTH_16.max_shift)
    return (wide_mac_of(target, "int32" if narrow else "int64"),)


def requantize_stage(
    problem: ConvProblem,
    mac: Mac,
    multiplier: np.ndarray,
    shift: np.ndarray,
    target: Target,
    natural: bool = False,
) -> OutputStage:
    """The output stage that makes codes.

    Args:
        problem: Storages and geometry.
        mac: The first of `conv_macs`.
        multiplier: m `[O]`.
        shift: s `[O]`.
        target: Device.
        natural: Forbid permuted channels.
    """
    residual = problem.residual
    images = [problem.source, problem.output, *([residual.image] if residual else [])]
    m, s = np.asarray(multiplier), np.asarray(shift)
    if all(code_width(image.dtype) is WIDTH_8 for image in images):
        isa = epilogue_isa(target)
        return Requantize(isa, problem.output, problem.grid, m, s, residual, natural)
    return WideRequantize(mac.idiom, problem.output, problem.grid, m, s, residual)
