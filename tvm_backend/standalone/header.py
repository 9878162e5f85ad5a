"""The C header of a standalone library."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from tvm_backend.memory_plan import ALIGNMENT
from tvm_backend.standalone.tensors import Interface, Tensor

_HEADER = Template("""\
/* $name: a quantized network as a C library, for $target. Made by fxquant $version.
 *
 *   static unsigned char memory[${NAME}_ARENA_BYTES + ${NAME}_ARENA_ALIGNMENT];
 *   ${name}_context context;
 *   const void *inputs[${NAME}_INPUTS];
 *   void *outputs[${NAME}_OUTPUTS];
 *   ... align memory to ${NAME}_ARENA_ALIGNMENT, point inputs and outputs at your arrays ...
 *   status = ${name}_init(&context, arena, ${NAME}_ARENA_BYTES);
 *   status = ${name}_run(&context, inputs, outputs);
 *
 * Tensors are dense arrays in the order of PyTorch (images: batch, channel, row, column).
 *
$tensors
 *
 * The library has no state of its own and allocates nothing. Contexts with arenas of their own may
 * run at the same time in different threads; one context runs one call at a time. It needs memcpy,
 * memset and memmove, and no other function.
 */
#ifndef ${NAME}_H
#define ${NAME}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ${NAME}_VERSION "$version"
#define ${NAME}_ARENA_BYTES ((size_t)$arena) /* memory for one run */
#define ${NAME}_ARENA_ALIGNMENT ((size_t)$alignment)
#define ${NAME}_INPUTS $inputs
#define ${NAME}_OUTPUTS $outputs

typedef enum ${name}_status {
  ${NAME}_OK = 0,
  ${NAME}_ERROR_NULL = 1,            /* a pointer is null */
  ${NAME}_ERROR_ARENA_SIZE = 2,      /* the arena is smaller than ${NAME}_ARENA_BYTES */
  ${NAME}_ERROR_ARENA_ALIGNMENT = 3, /* the arena does not start at a multiple of the alignment */
  ${NAME}_ERROR_CONTEXT = 4,         /* the context was not made by ${name}_init */
  ${NAME}_ERROR_PERMISSION = 5       /* the system does not permit the AMX tiles of this target */
} ${name}_status;

typedef enum ${name}_dtype {
  ${NAME}_FLOAT32 = 0,
  ${NAME}_UINT8 = 1,
  ${NAME}_UINT16 = 2,
  ${NAME}_INT32 = 3,
  ${NAME}_INT64 = 4
} ${name}_dtype;

/* A network in memory of its own. Private: only ${name}_init writes it. */
typedef struct ${name}_context {
  unsigned char *arena;
  uint32_t tag;
} ${name}_context;

/* An input or an output.
 *
 * ${name}_run_quantized takes and gives codes. Element k of a tensor stands for the float
 *
 *   scale[k / channel_stride % scales] * (float)(code - zero_point)
 *
 * in float32 arithmetic, which is what ${name}_run computes, bit for bit. Input codes are
 * round_half_even(x / scale) + zero_point, clipped to [least, largest]. A tensor without codes
 * (has_codes == 0) has the same type in both calls; its scale is 1.
 */
typedef struct ${name}_tensor {
  const char *name;
  const size_t *shape;
  size_t rank;
  size_t elements;
  ${name}_dtype dtype;           /* in ${name}_run */
  size_t bytes;                  /* in ${name}_run */
  ${name}_dtype quantized_dtype; /* in ${name}_run_quantized */
  size_t quantized_bytes;        /* in ${name}_run_quantized */
  int has_codes;
  const float *scale;
  size_t scales;
  size_t channel_stride;
  int32_t zero_point;
  int64_t least;
  int64_t largest;
} ${name}_tensor;

/* The version of fxquant that made the library. */
const char *${name}_version(void);

/* Bytes of the arena of a context: ${NAME}_ARENA_BYTES. */
size_t ${name}_arena_bytes(void);

/* Number of inputs and of outputs. */
size_t ${name}_inputs(void);
size_t ${name}_outputs(void);

/* Description of an input or output, in the order of the model; null if there is none. */
const ${name}_tensor *${name}_input(size_t index);
const ${name}_tensor *${name}_output(size_t index);

/* Prepare a context.
 *
 * context  written; the caller's
 * arena    aligned to ${NAME}_ARENA_ALIGNMENT; the caller's, used by every run of this context
 * bytes    size of the arena, at least ${NAME}_ARENA_BYTES
 */
${name}_status ${name}_init(${name}_context *context, void *arena, size_t bytes);

/* Run the network on floats (tensors without codes: on their own type).
 *
 * inputs   one array of `bytes` bytes an input; only read
 * outputs  one array of `bytes` bytes an output; overlaps neither inputs nor other outputs
 */
${name}_status ${name}_run(const ${name}_context *context, const void *const *inputs,
                           void *const *outputs);

/* The same on codes: arrays of `quantized_bytes` bytes. */
${name}_status ${name}_run_quantized(const ${name}_context *context, const void *const *inputs,
                                     void *const *outputs);

/* What a status means, in English; never null. */
const char *${name}_status_string(${name}_status status);

#ifdef __cplusplus
}
#endif

#endif
""")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the generated files say about a library.

    Attributes:
        name: Prefix of everything it defines, a C identifier.
        target: Name of the target.
        version: Version of fxquant.
        arena_bytes: Size of the arena.
    """

    name: str
    target: str
    version: str
    arena_bytes: int

    @property
    def substitutions(self) -> dict[str, str]:
        """For templates: `$name` and `$NAME`."""
        return {
            "name": self.name, "NAME": self.name.upper(), "target": _comment(self.target),
            "version": self.version, "arena": str(self.arena_bytes), "alignment": str(ALIGNMENT),
        }  # fmt: skip


def _comment(text: str) -> str:
    """Text that cannot end a C comment or a line."""
    return " ".join(text.replace("*/", "").split())


def header_source(facts: Facts, tensors: Interface) -> str:
    """The header."""
    return _HEADER.substitute(
        facts.substitutions,
        inputs=len(tensors.inputs),
        outputs=len(tensors.outputs),
        tensors="\n".join(
            [_line(f"input {i}", t) for i, t in enumerate(tensors.inputs)]
            + [_line(f"output {i}", t) for i, t in enumerate(tensors.outputs)]
        ),
    )


def _line(place: str, tensor: Tensor) -> str:
    shape = " x ".join(map(str, tensor.spec.shape)) or "scalar"
    codes = f", codes {tensor.quantized}" if tensor.border is not None else ""
    return f" *   {place}: {shape}, {tensor.spec.dtype}{codes}"
