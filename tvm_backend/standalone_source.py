"""The C side of a standalone program: calls in order on one arena, weights in one section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_backend.layout import round_up
from tvm_backend.memory_plan import ALIGNMENT, lifetimes, plan_memory
from tvm_backend.program import Program, Step, leaves
from tvm_backend.signature import Signature


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """All constants in one block.

    Attributes:
        data: uint8, every array at a multiple of ALIGNMENT.
        step_offsets: Offsets of the constants of each step.
        value_offsets: Offsets of the constant values, by name.
    """

    data: np.ndarray
    step_offsets: tuple[tuple[int, ...], ...]
    value_offsets: Mapping[str, int]

    @staticmethod
    def of(program: Program) -> Weights:
        """Lay out a program's constants; equal arrays are stored once."""
        known: dict[bytes, int] = {}
        blocks: list[bytes] = []
        size = 0

        def place(array: np.ndarray) -> int:
            nonlocal size
            content = np.ascontiguousarray(array).tobytes()
            if content not in known:
                known[content] = size
                blocks.append(content.ljust(round_up(len(content), ALIGNMENT), b"\0"))
                size += len(blocks[-1])
            return known[content]

        steps = tuple(
            tuple(place(a) for a in step.kernel.constants) if isinstance(step, Step) else ()
            for step in program.steps
        )
        values = {name: place(array) for name, array in program.constants.items()}
        data = np.frombuffer(b"".join(blocks) or bytes(ALIGNMENT), np.uint8)
        return Weights(data, steps, values)


def weights_source() -> str:
    """Assembly that includes the weights file."""
    return """    .section .rodata
    .balign 64
    .global model_weights
model_weights:
    .incbin "weights.bin"
    .section .note.GNU-stack,"",%progbits
"""


def model_source(program: Program, weights: Weights) -> tuple[str, int]:
    """`model_run` in C, and the bytes of its arena."""
    plan = plan_memory(lifetimes(program))
    place = {name: f"arena + {offset}" for name, offset in plan.offsets.items()}
    place.update((n, f"model_weights + {o}") for n, o in weights.value_offsets.items())
    place.update((name, f"inputs[{i}]") for i, name in enumerate(program.inputs))
    results = leaves(program.outputs)
    made = {name for step in program.steps for name in step.outputs}
    for i, name in enumerate(results):
        if name in made and name not in place:
            place[name] = f"outputs[{i}]"
    lines = []
    for step, offsets in zip(program.steps, weights.step_offsets, strict=True):
        assert isinstance(step, Step)
        arguments = [place[name] for name in step.inputs]
        arguments += [f"model_weights + {offset}" for offset in offsets]
        arguments.append(place[step.output])
        call = f"{step.kernel.name}({', '.join(arguments)})"
        lines.append(f"  {call};  /* {step.node} */")
    for i, name in enumerate(results):
        if place[name] != f"outputs[{i}]":
            storage = program.values[name].storage
            nbytes = storage.size * np.dtype(storage.dtype).itemsize
            lines.append(f"  memcpy(outputs[{i}], {place[name]}, {nbytes});")
    declarations = "".join(
        f"void {name}({', '.join(['const void *'] * (count - 1) + ['void *'])});\n"
        for name, count in _arities(program).items()
    )
    body = "\n".join(lines)
    source = f"""#include <string.h>
#include "model.h"

extern const unsigned char model_weights[];
static unsigned char arena[{max(plan.nbytes, 1)}] __attribute__((aligned({ALIGNMENT})));

{declarations}
void model_run(void *const *inputs, void *const *outputs) {{
  (void)arena;
{body}
}}
"""
    return source, plan.nbytes


def _arities(program: Program) -> dict[str, int]:
    return {
        name: len(kernel.inputs) + len(kernel.constants) + 1
        for name, kernel in program.kernels.items()
    }


def main_source(signature: Signature) -> str:
    """A program that reads raw inputs from files and writes raw outputs to files."""
    inputs = ", ".join(str(spec.nbytes) for spec in signature.inputs) or "0"
    outputs = ", ".join(str(spec.nbytes) for spec in signature.outputs) or "0"
    return f"""#include <stdio.h>
#include <stdlib.h>
#include "model.h"

/* model INPUT... OUTPUT...: raw little-endian arrays in C order. */
enum {{ INPUTS = {len(signature.inputs)}, OUTPUTS = {len(signature.outputs)} }};
static const size_t input_bytes[] = {{{inputs}}};
static const size_t output_bytes[] = {{{outputs}}};

static void *allocate(size_t bytes) {{
  void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!memory) {{ fprintf(stderr, "out of memory\\n"); exit(2); }}
  return memory;
}}

int main(int argc, char **argv) {{
  void *inputs[INPUTS + 1], *outputs[OUTPUTS + 1];
  if (argc != 1 + INPUTS + OUTPUTS) {{
    fprintf(stderr, "usage: %s INPUT... OUTPUT...\\n", argv[0]);
    return 2;
  }}
  for (int i = 0; i < INPUTS; ++i) {{
    FILE *file = fopen(argv[1 + i], "rb");
    inputs[i] = allocate(input_bytes[i]);
    if (!file || fread(inputs[i], 1, input_bytes[i], file) != input_bytes[i]) {{
      fprintf(stderr, "cannot read %zu bytes from %s\\n", input_bytes[i], argv[1 + i]);
      return 3;
    }}
    fclose(file);
  }}
  for (int i = 0; i < OUTPUTS; ++i) outputs[i] = allocate(output_bytes[i]);
  model_run(inputs, outputs);
  for (int i = 0; i < OUTPUTS; ++i) {{
    FILE *file = fopen(argv[1 + INPUTS + i], "wb");
    if (!file || fwrite(outputs[i], 1, output_bytes[i], file) != output_bytes[i] || fclose(file)) {{
      fprintf(stderr, "cannot write %s\\n", argv[1 + INPUTS + i]);
      return 5;
    }}
  }}
  return 0;
}}
"""
