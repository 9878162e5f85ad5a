"""The C driver of a standalone library: checks, and the kernel calls in order on one arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template

import numpy as np

from tvm_backend.kernel import Kernel
from tvm_backend.layout import round_up
from tvm_backend.memory_plan import ALIGNMENT, MemoryPlan
from tvm_backend.program import Program, Step, leaves
from tvm_backend.standalone.header import Facts
from tvm_backend.standalone.tensors import Interface, Tensor
from tvm_backend.standalone.weights import Weights

_DRIVER = Template("""\
/* $name: the calls of a network's kernels. See $name.h. Made by fxquant $version. */
#include "$name.h"

#include <string.h>

#define TAG ((uint32_t)0x${tag}u)

extern const unsigned char ${name}_weights[];

$prototypes

$tables

static void run_steps(unsigned char *arena, const void *const *inputs, void *const *outputs,
                      int quantized) {
  const unsigned char *const weights = ${name}_weights;
$unused$steps}

static ${name}_status run(const ${name}_context *context, const void *const *inputs,
                          void *const *outputs, int quantized) {
  size_t i;
  if (context == NULL || inputs == NULL || outputs == NULL) return ${NAME}_ERROR_NULL;
  if (context->tag != TAG || context->arena == NULL) return ${NAME}_ERROR_CONTEXT;
  for (i = 0; i < ${NAME}_INPUTS; ++i)
    if (inputs[i] == NULL) return ${NAME}_ERROR_NULL;
  for (i = 0; i < ${NAME}_OUTPUTS; ++i)
    if (outputs[i] == NULL) return ${NAME}_ERROR_NULL;
  run_steps(context->arena, inputs, outputs, quantized);
  return ${NAME}_OK;
}

$permission${name}_status ${name}_init(${name}_context *context, void *arena, size_t bytes) {
  if (context == NULL) return ${NAME}_ERROR_NULL;
  context->arena = NULL;
  context->tag = 0;
  if (arena == NULL) return ${NAME}_ERROR_NULL;
  if (bytes < ${NAME}_ARENA_BYTES) return ${NAME}_ERROR_ARENA_SIZE;
  if ((uintptr_t)arena % ${NAME}_ARENA_ALIGNMENT != 0) return ${NAME}_ERROR_ARENA_ALIGNMENT;
$permitted  context->arena = (unsigned char *)arena;
  context->tag = TAG;
  return ${NAME}_OK;
}

${name}_status ${name}_run(const ${name}_context *context, const void *const *inputs,
                           void *const *outputs) {
  return run(context, inputs, outputs, 0);
}

${name}_status ${name}_run_quantized(const ${name}_context *context, const void *const *inputs,
                                     void *const *outputs) {
  return run(context, inputs, outputs, 1);
}

const char *${name}_version(void) { return ${NAME}_VERSION; }
size_t ${name}_arena_bytes(void) { return ${NAME}_ARENA_BYTES; }
size_t ${name}_inputs(void) { return ${NAME}_INPUTS; }
size_t ${name}_outputs(void) { return ${NAME}_OUTPUTS; }

const ${name}_tensor *${name}_input(size_t index) {
  return index < ${NAME}_INPUTS ? &input_tensors[index] : NULL;
}

const ${name}_tensor *${name}_output(size_t index) {
  return index < ${NAME}_OUTPUTS ? &output_tensors[index] : NULL;
}

const char *${name}_status_string(${name}_status status) {
  switch (status) {
    case ${NAME}_OK: return "no error";
    case ${NAME}_ERROR_NULL: return "a pointer is null";
    case ${NAME}_ERROR_ARENA_SIZE: return "the arena is too small";
    case ${NAME}_ERROR_ARENA_ALIGNMENT: return "the arena is not aligned";
    case ${NAME}_ERROR_CONTEXT: return "the context is not initialized";
    case ${NAME}_ERROR_PERMISSION: return "the system does not permit AMX tiles";
  }
  return "unknown status";
}
""")

# Linux lets a process use the tile registers once it has asked; no library is needed for that.
_PERMISSION = """\
static int may_use_tiles(void) {
#if defined(__linux__) && defined(__x86_64__)
  const long permit = 0x1023, tiles = 18; /* ARCH_REQ_XCOMP_PERM, XTILEDATA */
  long result = 158;                      /* arch_prctl */
  __asm__ volatile("syscall" : "+a"(result) : "D"(permit), "S"(tiles) : "rcx", "r11", "memory");
  return result == 0;
#else
  return 0;
#endif
}

"""

_API = (
    "version arena_bytes inputs outputs input output init run run_quantized status_string".split()
)
_TAG = "66787131"


def api_symbols(name: str) -> list[str]:
    """The functions of the header."""
    return [f"{name}_{function}" for function in _API]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Everything the driver is made from.

    Attributes:
        program: Kernel calls.
        weights: Constants.
        plan: Places of values, and of a step's widened weights and workspace (`scratch_name`), in
            the arena.
        tensors: Inputs and outputs.
    """

    program: Program
    weights: Weights
    plan: MemoryPlan
    tensors: Interface

    @property
    def kernels(self) -> dict[str, Kernel]:
        """Every kernel the driver calls."""
        copies = {k.name: k for k in self.tensors.replacements.values()}
        return {**self.program.kernels, **copies}


def scratch_name(step: int) -> str:
    """Name of a step's widened weights and workspace in the memory plan."""
    return f"scratch of step {step}"


def kernel_symbol(name: str, kernel: str) -> str:
    """C name of a kernel."""
    return f"{name}_kernel_{kernel}"


def widen_symbol(name: str, bits: int) -> str:
    """C name of the function that widens codes."""
    return f"{name}_widen{bits}"


def driver_source(facts: Facts, model: Model) -> str:
    """The C source."""
    prototypes = [
        f"void {kernel_symbol(facts.name, name)}("
        + ", ".join(
            ["const void *"] * (len(k.inputs) + len(k.constants))
            + ["void *"] * (1 + len(k.workspace))
        )
        + ");"
        for name, k in model.kernels.items()
    ]
    prototypes += [
        f"void {widen_symbol(facts.name, bits)}(const void *, int32_t, void *);"
        for bits in model.weights.widths
    ]
    steps = _steps(facts.name, model)
    permission = permitted = ""
    if model.program.target.tiles is not None:
        permission = _PERMISSION
        permitted = f"  if (!may_use_tiles()) return {facts.name.upper()}_ERROR_PERMISSION;\n"
    unused = [f"  (void){n};\n" for n in ("arena", "weights", "quantized", "inputs", "outputs")]
    return _DRIVER.substitute(
        facts.substitutions,
        permission=permission,
        permitted=permitted,
        tag=_TAG,
        prototypes="\n".join(prototypes),
        tables=_tables(facts.name, model.tensors),
        unused="".join(unused),
        steps="".join(f"  {line}\n" for line in steps),
    )


def _steps(name: str, model: Model) -> list[str]:
    """Statements that compute the outputs."""
    program, weights = model.program, model.weights
    place = {value: f"arena + {offset}" for value, offset in model.plan.offsets.items()}
    place.update((value, f"weights + {offset}") for value, offset in weights.values.items())
    place.update((value, f"inputs[{i}]") for i, value in enumerate(program.inputs))
    results = leaves(program.outputs)
    made = {value for step in program.steps for value in step.outputs}
    for i, value in enumerate(results):
        if value in made and value not in place:
            place[value] = f"outputs[{i}]"
    lines = []
    for index, (step, constants) in enumerate(zip(program.steps, weights.steps, strict=True)):
        assert isinstance(step, Step)
        lines.append(f"/* {step.node} */")
        arguments = [place[value] for value in step.inputs]
        scratch = model.plan.offsets.get(scratch_name(index), 0)
        for constant in constants:
            source = f"weights + {constant.offset}"
            if constant.bits:
                widened = f"arena + {scratch}"
                function = widen_symbol(name, constant.bits)
                lines.append(f"{function}({source}, {constant.blocks}, {widened});")
                scratch += constant.widened_bytes
                source = widened
            arguments.append(source)
        arguments.append(place[step.output])
        for nbytes in step.kernel.workspace_bytes:
            arguments.append(f"arena + {scratch}")
            scratch += round_up(nbytes, ALIGNMENT)
        lines += _call(name, index, step, arguments, model.tensors)
    for i, value in enumerate(results):
        if place[value] != f"outputs[{i}]":
            lines.append(_final_copy(i, place[value], value, program, model.tensors.outputs[i]))
    return lines


def _call(
    name: str, index: int, step: Step, arguments: Sequence[str], tensors: Interface
) -> list[str]:
    call = f"{kernel_symbol(name, step.kernel.name)}({', '.join(arguments)});"
    copy = tensors.replacements.get(index)
    if copy is None:
        return [call]
    operands = [arguments[0], arguments[-1]]  # the copy has no constants
    return [
        "if (quantized)",
        f"  {kernel_symbol(name, copy.name)}({', '.join(operands)});",
        "else",
        f"  {call}",
    ]


def _final_copy(index: int, source: str, value: str, program: Program, tensor: Tensor) -> str:
    """An output that no kernel writes: an input, a constant, or another output once more."""
    if tensor.spec.nbytes == tensor.quantized_bytes:
        return f"memcpy(outputs[{index}], {source}, {tensor.spec.nbytes});"
    size = f"quantized ? {tensor.quantized_bytes} : {tensor.spec.nbytes}"
    return f"memcpy(outputs[{index}], {source}, {size});"


def _tables(name: str, tensors: Interface) -> str:
    lines: list[str] = []
    for kind, group in (("input", tensors.inputs), ("output", tensors.outputs)):
        records = [_record(name, f"{kind}{i}", t, lines) for i, t in enumerate(group)]
        rows = ",\n".join(records) or "  {0}"
        lines.append(f"static const {name}_tensor {kind}_tensors[] = {{\n{rows}\n}};")
    return "\n".join(lines)


def _record(name: str, variable: str, tensor: Tensor, lines: list[str]) -> str:
    """One initializer; arrays it points to are added to `lines`."""
    spec, border = tensor.spec, tensor.border
    shape = ", ".join(map(str, spec.shape)) or "0"
    lines.append(f"static const size_t {variable}_shape[] = {{{shape}}};")
    scale = np.ones(1, np.float32) if border is None else border.scale
    numbers = ",\n  ".join(
        ", ".join(f"{float(s).hex()}f" for s in scale[i : i + 4]) for i in range(0, scale.size, 4)
    )
    lines.append(f"static const float {variable}_scale[] = {{\n  {numbers}\n}};")
    least, largest = _bounds(tensor)
    fields = [
        f'"{spec.name}"', f"{variable}_shape", len(spec.shape), tensor.elements,
        _dtype(name, spec.dtype), spec.nbytes,
        _dtype(name, tensor.quantized), tensor.quantized_bytes,
        int(border is not None), f"{variable}_scale", scale.size,
        border.stride if border else 1, border.zero_point if border else 0,
        least, largest,
    ]  # fmt: skip
    return f"  {{{', '.join(map(str, fields))}}}"


_LIMITS: Mapping[str, tuple[str, str]] = {
    "float32": ("0", "0"),
    "uint8": ("0", "UINT8_MAX"),
    "uint16": ("0", "UINT16_MAX"),
    "int32": ("INT32_MIN", "INT32_MAX"),
    "int64": ("INT64_MIN", "INT64_MAX"),
}


def _bounds(tensor: Tensor) -> tuple[str, str]:
    if tensor.border is not None and tensor.border.bounds is not None:
        least, largest = tensor.border.bounds
        return str(least), str(largest)
    return _LIMITS[tensor.quantized]


def _dtype(name: str, dtype: str) -> str:
    return f"{name.upper()}_{dtype.upper()}"
