"""Linear layers at batch 1 with cold weights: codes of a byte against codes packed at 4 and 2 bits.

    python -m benchmarks.weight_forms --shapes 4096x1000 1280x1000 --rounds 30

Every call gets weights of its own from a ring of copies larger than the last-level cache, so they
come from memory as in a network that does not fit. All forms multiply the same codes and take turns
in every round; ratios are taken within a round, since clocks drift and others use the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

from fxquant import targets
from fxquant.inspection import Timing, interleaved
from fxquant.targets import Target
from tvm_backend import host_target
from tvm_backend.devices import llvm_target
from tvm_backend.emit.conv_weights import BYTES, PACKED_BITS, WeightForm
from tvm_backend.emit.linear import linear_accumulate_kernel
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.layout import image
from tvm_backend.tvm_api import PASS_CONFIG, tvm

SHAPES = ("4096x1000", "2048x1000", "1280x1000")
FORMS = (BYTES, *(WeightForm(bits) for bits in sorted(PACKED_BITS, reverse=True)))


def layer(shape: tuple[int, int], target: Target, form: WeightForm | None = None) -> Kernel:
    """A layer with 2-bit codes, which every form holds.

    Args:
        shape: Inputs and outputs.
        target: Device.
        form: How its weights lie in memory; by default chosen by the cost model.
    """
    inputs, outputs = shape
    weight = np.random.default_rng(0).integers(-2, 2, (outputs, inputs)).astype(np.int8)
    return linear_accumulate_kernel(
        image((1, inputs), target.mac.storage), image((1, outputs), "int32"), input_zero_point=128,
        weight=weight, bias=np.zeros(outputs, np.int32), target=target, form=form,
    )  # fmt: skip


def cold_call(kernel: Kernel, target: Target, ring: int) -> tuple[Callable[[], object], Any]:
    """A function that runs the layer on the next copy of its weights, and where it writes.

    Args:
        kernel: The layer.
        target: Device.
        ring: Bytes of all copies together.
    """
    with tvm.transform.PassContext(opt_level=3, config=PASS_CONFIG):
        built = tvm.compile(kernel.build(Abi.PACKED), target=llvm_target(target))
    function = getattr(built, "mod", built)[kernel.name]
    weights, *rest = kernel.constants
    copies = cycle([tvm.runtime.tensor(weights) for _ in range(-(-ring // weights.nbytes))])
    x = tvm.runtime.tensor(np.arange(kernel.inputs[0].size).astype(kernel.inputs[0].dtype))
    others = [tvm.runtime.tensor(constant) for constant in rest]
    result = tvm.runtime.tensor(np.zeros(kernel.output.size, kernel.output.dtype))
    return lambda: function(x, next(copies), *others, result), result


def measure(
    shape: tuple[int, int], target: Target, ring: int, rounds: int, calls: int
) -> dict[int, Timing]:
    """Times of all forms by the bits of a code."""
    made = {form.bits: cold_call(layer(shape, target, form), target, ring) for form in FORMS}
    timings = interleaved({str(b): call for b, (call, _) in made.items()}, rounds, calls=calls)
    expected = made[BYTES.bits][1].numpy()
    assert all((result.numpy() == expected).all() for _, result in made.values())
    return {int(bits): timing for bits, timing in timings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time linear layers with packed weights.")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="INPUTSxOUTPUTS")
    parser.add_argument("--target", choices=[t.name for t in targets.ALL], help="default: this CPU")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=5, help="calls in a round; the median counts")
    parser.add_argument("--ring", type=int, default=128, help="MiB of copies of the weights")
    options = parser.parse_args()
    named = {t.name: t for t in targets.ALL}
    target = named[options.target] if options.target else host_target()
    print(f"{'layer':>12s} {'bits':>4s} {'us':>9s} {'ratio':>6s}  chosen for 2-bit codes")
    for text in options.shapes:
        inputs, outputs = map(int, text.split("x"))
        shape = (inputs, outputs)
        choice = layer(shape, target).weight_bits
        found = measure(shape, target, options.ring << 20, options.rounds, options.calls)
        for bits, timing in found.items():
            print(
                f"{text:>12s} {bits:4d} {timing.median * 1e3:9.1f} {timing.ratio:6.2f}"
                f"  {'*' if bits == choice else ''}",
                flush=True,
            )


if __name__ == "__main__":
    main()
