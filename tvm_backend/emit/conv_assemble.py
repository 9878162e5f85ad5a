"""What all convolution kernels share around their loops: names, parameters, the folded bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fxquant.targets import MacIdiom, TileUnit
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.epilogue import OutputStage, pad_channels
from tvm_backend.emit.naming import SHORT
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Flat, Storage


def fold_zero_point(
    problem: ConvProblem, weight: np.ndarray, bias: np.ndarray, slots: int
) -> np.ndarray:
    """int64 `[slots]`: the bias less the input's (stored) zero point times the weight sums."""
    sums = weight.astype(np.int64).reshape(weight.shape[0], -1).sum(1)
    return pad_channels(np.asarray(bias, np.int64) - problem.stored_input_zero_point * sums, slots)


def kernel_name(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    tile: object,
    idiom: MacIdiom | TileUnit,
    suffix: str = "",
    weight_bits: int = 8,
) -> str:
    """`<out>_<in>_qc<bits>w_<op>_<source>_<output>_<geometry>_<tile><stage><suffix>__<idiom>`."""
    start = problem_name(operator, problem, weight_bits)
    return f"{start}_{tile}{stage.suffix}{suffix}__{idiom.name}"


def problem_name(operator: str, problem: ConvProblem, weight_bits: int = 8) -> str:
    """`<out>_<in>_qc<bits>w_<op>_<source>_<output>_<geometry>`."""
    return (
        f"{SHORT[problem.output.dtype]}_{SHORT[problem.source.dtype]}_qc{weight_bits}w_{operator}"
        f"_{problem.source}_{problem.output}_{problem.geometry}"
    )


def assemble(
    name: str,
    problem: ConvProblem,
    stage: OutputStage,
    constants: Sequence[tuple[str, np.ndarray]],
    emit: Callable[[dict[str, Any], Abi], None],
    workspace: Sequence[tuple[str, Flat]] = (),
) -> Kernel:
    """The Kernel around `emit(buffers, abi)`, with parameters x[, residual], constants, output.

    The buffers of the workspace are among `buffers` for the BARE ABI only.

    The residual may be overwritten: tiles do not overlap, and each element is read just before its
    sum is stored.
    """
    inputs: list[tuple[str, Storage]] = [("x", problem.source)]
    if stage.residual is not None:
        inputs.append(("residual", stage.residual))
    params = [
        *(Param(key, storage.shape, storage.dtype) for key, storage in inputs),
        *(Param(key, value.shape, str(value.dtype)) for key, value in constants),
        Param("output", problem.output.shape, problem.output.dtype),
    ]
    extra = [Param(key, storage.shape, storage.dtype) for key, storage in workspace]

    def build(abi: Abi) -> Any:
        parameters = [*params, *extra] if abi is Abi.BARE else params
        with prim_func(name, parameters, abi) as (built, buffers):
            stage.prologue(buffers)
            emit(buffers, abi)
        return built.func

    return Kernel(
        name,
        build,
        tuple(storage for _, storage in inputs),
        tuple(value for _, value in constants),
        problem.output,
        (1,) if stage.residual == problem.output else (),
        tuple(storage for _, storage in workspace),
    )
