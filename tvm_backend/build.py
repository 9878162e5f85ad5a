"""Program -> Relax module -> executable: the host path.

`main` calls every kernel with `call_tir`; weights are constants of the module. All values are
flat buffers; the runtime gives inputs and outputs their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxquant.errors import TargetError
from fxquant.targets import Target
from tvm_backend.call import Value
from tvm_backend.devices import llvm_target
from tvm_backend.float_island import Islands
from tvm_backend.kernel import Abi
from tvm_backend.pipeline import LOWER, PLAN
from tvm_backend.program import Island, Program, Step, leaves
from tvm_backend.tvm_api import PASS_CONFIG, last_line, relax, tvm


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A compiled module.

    Attributes:
        executable: Relax executable, loadable by a virtual machine.
        memory_bytes: Bytes of intermediate values after planning, and of the largest workspace of a
            kernel (of one thread).
    """

    executable: Any
    memory_bytes: int


def build(program: Program, progress: Callable[[str], None] | None = None) -> Built:
    """Compile a program for the Relax virtual machine.

    Args:
        program: From `lower`.
        progress: Called with the name of every kernel that is made.

    Raises:
        UnsupportedError: A float island has an operator TVM cannot import.
        TargetError: LLVM refuses the target.
    """
    module = _module(program, progress or (lambda _: None))
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        planned = PLAN(module)
        try:
            executable = relax.build(
                planned, target=llvm_target(program.target), relax_pipeline=LOWER
            )
        except RuntimeError as error:
            raise TargetError(
                f"code generation for {program.target} failed",
                why=last_line(error),
                remedy="check the target's LLVM options",
            ) from error
    workspace = max((sum(k.workspace_bytes) for k in program.kernels.values()), default=0)
    return Built(executable, _planned_bytes(planned["main"]) + workspace)


def host_functions(functions: Mapping[str, Any], target: Target) -> Any:
    """PrimFuncs compiled for this machine: what is returned has them by name.

    Args:
        functions: PrimFuncs by name, of the PACKED calling convention.
        target: A device that this machine is.
    """
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        built = tvm.compile(tvm.IRModule(dict(functions)), target=llvm_target(target))
    return getattr(built, "mod", built)


def _module(program: Program, progress: Callable[[str], None]) -> Any:
    builder = relax.BlockBuilder()
    kernels = {}
    for name, kernel in program.kernels.items():
        progress(name)
        kernels[name] = builder.add_func(kernel.build(Abi.PACKED), name)
    islands = Islands(builder, program)
    functions = {step.name: islands.add(step) for step in program.steps if isinstance(step, Island)}
    parameters = {
        name: relax.Var(name, _tensor_type(program.values[name])) for name in program.inputs
    }
    held: dict[str, Any] = dict(parameters)
    held.update((name, _constant(array)) for name, array in program.constants.items())
    with builder.function("main", list(parameters.values())):
        with builder.dataflow():
            for step in program.steps:
                if isinstance(step, Step):
                    held[step.output] = builder.emit(_kernel_call(step, kernels, held))
                else:
                    _emit_island(builder, step, functions[step.name], program, held)
            result = builder.emit_output(
                relax.Tuple([held[name] for name in leaves(program.outputs)])
            )
        builder.emit_func_output(result)
    return builder.get()


def _tensor_type(value: Value) -> Any:
    return relax.TensorType((value.storage.size,), value.storage.dtype)


def _constant(array: np.ndarray) -> Any:
    """A constant of the array's own type: Relax would make int32 of int64."""
    return relax.const(array, str(array.dtype))


def _kernel_call(step: Step, kernels: dict[str, Any], held: dict[str, Any]) -> Any:
    kernel = step.kernel
    arguments = [held[name] for name in step.inputs]
    arguments += [_constant(array) for array in kernel.constants]
    result = relax.TensorType((kernel.output.size,), kernel.output.dtype)
    return relax.call_tir(kernels[kernel.name], relax.Tuple(arguments), result)


def _emit_island(
    builder: Any,
    island: Island,
    function: tuple[Any, list[np.ndarray]],
    program: Program,
    held: dict[str, Any],
) -> None:
    """Flat buffers -> tensors -> the island -> flat buffers; the reshapes copy nothing."""
    variable, constants = function
    shapes = [program.values[name].shape for name in island.inputs]
    arguments = [
        builder.emit(relax.op.reshape(held[name], shape))
        for name, shape in zip(island.inputs, shapes, strict=True)
    ]
    arguments += [_constant(array) for array in constants]
    results = builder.emit(relax.Call(variable, arguments))
    for i, name in enumerate(island.outputs):
        result = builder.emit(relax.TupleGetItem(results, i))
        held[name] = builder.emit(
            relax.op.reshape(result, (math.prod(program.values[name].shape),))
        )


def _planned_bytes(function: Any) -> int:
    """Bytes of all storages a planned function allocates."""
    total = 0
    operator = tvm.ir.Op.get("relax.memory.alloc_storage")

    def visit(expression: Any) -> None:
        nonlocal total
        if isinstance(expression, relax.Call) and expression.op == operator:
            total += int(expression.args[0].values[0])

    relax.analysis.post_order_visit(function.body, visit)
    return total
