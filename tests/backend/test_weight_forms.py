"""Weight codes of few bits: packed, unpacked in the kernel's registers, chosen where useful."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import UnsupportedError
from fxquant.numerics import reference
from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    CORTEX_A76,
    GENERIC,
    NEOVERSE_V1,
    X86_AVX2,
    X86_AVX512,
    X86_VNNI,
    Target,
)
from tests.backend.conv_cases import (
    RESIDUAL,
    Case,
    Numbers,
    check,
    extreme,
    make_numbers,
)
from tests.backend.kernel_harness import from_storage, run_kernel, to_storage, undefined_symbols
from tvm_backend.emit.conv_weights import BYTES, PACKED_BITS, WeightForm, code_bits
from tvm_backend.emit.epilogue import OutputGrid
from tvm_backend.emit.linear import linear_accumulate_kernel, linear_kernel
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.layout import image

TARGETS = [
    X86_AVX2, X86_VNNI, X86_AVX512,
    *(pytest.param(t, marks=pytest.mark.qemu) for t in (CORTEX_A53, CORTEX_A76)),
    *(
        pytest.param(t, marks=[pytest.mark.qemu, pytest.mark.slow])
        for t in (NEOVERSE_V1, ARMV7_NEON)
    ),
]  # fmt: skip
SHAPES = [(1, 1), (15, 7), (16, 8), (17, 9), (33, 63), (36, 64), (64, 65), (67, 33), (95, 129)]


def codes(bits: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Codes of a width; a third are its bounds."""
    half = 1 << (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return extreme(generator, -half, half - 1, shape).to(torch.int8)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(PACKED_BITS), st.integers(1, 9), st.integers(1, 40), st.integers(0, 1 << 30))
def test_fields_are_the_vectors(bits: int, vectors: int, elements: int, seed: int) -> None:
    form, half = WeightForm(bits), 1 << (bits - 1)
    plain = codes(bits, 3, vectors, elements, seed=seed).numpy()
    packed = form.pack(plain)
    assert packed.dtype == np.uint8 and packed.shape == (3, form.stored(vectors), elements)
    for v in range(vectors):
        byte = packed[:, v // form.density] >> (bits * (v % form.density))
        assert ((byte & (2 * half - 1)).astype(int) - half == plain[:, v]).all()


def linear_differs(
    target: Target, bits: int, shape: tuple[int, int], form: WeightForm | None = None
) -> int:
    """How many codes and accumulators of a layer with extreme operands differ from the reference.

    Args:
        target: Device.
        bits: Bits of the weight codes.
        shape: Inputs and outputs.
        form: How weights lie in memory; by default the narrowest that holds the codes.
    """
    (k, o), form = shape, form or WeightForm(2 if bits == 2 else 4)
    g = torch.Generator().manual_seed(k)
    x = extreme(g, 0, 255, (1, k)).to(torch.uint8)
    weight = codes(bits, o, k)
    bias = torch.randint(-900, 901, (o,), generator=g, dtype=torch.int32)
    multiplier = torch.randint(1 << 14, 1 << 15, (o,), generator=g).to(torch.int16)
    shift = torch.randint(-3, 3, (o,), generator=g).to(torch.int8)
    source, output = (image((1, c), target.mac.storage) for c in (k, o))
    common = {"weight": weight.numpy(), "bias": bias.numpy(), "target": target, "form": form}

    kernel = linear_kernel(
        source, output, OutputGrid(9, 0, 250), input_zero_point=77,
        multiplier=multiplier.numpy(), shift=shift.numpy(), **common,
    )  # fmt: skip
    assert kernel.weight_bits == form.bits and f"_qc{form.bits}w_" in kernel.name
    result = run_kernel(kernel, target, to_storage(x, source), abi=Abi.BARE)
    expected = reference.linear(
        x, weight, bias, multiplier, shift,
        input_zero_point=77, output_zero_point=9, qmin=0, qmax=250,
    )  # fmt: skip
    wrong = from_storage(result, output, (1, o)) != expected

    wide = replace(output, dtype="int32")
    kernel = linear_accumulate_kernel(source, wide, input_zero_point=77, **common)
    result = run_kernel(kernel, target, to_storage(x, source), abi=Abi.BARE)
    expected = reference.linear_accumulate(x, weight, bias, input_zero_point=77)
    return int(wrong.sum() + (from_storage(result, wide, (1, o)) != expected).sum())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_linear_equals_reference(bits: int, shape: tuple[int, int]) -> None:
    """Around the lanes, steps and chains of the idioms; guard pages behind every buffer."""
    assert linear_differs(X86_AVX2, bits, shape) == 0


def test_a_form_is_kept_where_weights_are_streamed() -> None:
    assert linear_differs(X86_AVX2, 2, (1024, 520), WeightForm(4)) == 0
    assert linear_differs(X86_AVX2, 2, (1024, 520), BYTES) == 0


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("target", TARGETS[1:], ids=str)
def test_linear_equals_reference_elsewhere(target: Target, bits: int) -> None:
    for shape in (SHAPES[3], SHAPES[-1]):
        assert linear_differs(target, bits, shape) == 0


def test_swapped_fields_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = WeightForm.pack

    def swapped(form: WeightForm, plain: np.ndarray) -> np.ndarray:
        packed = pack(form, plain)
        return packed if form == BYTES else packed >> 4 | packed << 4

    monkeypatch.setattr(WeightForm, "pack", swapped)
    assert linear_differs(X86_AVX2, 4, (17, 33), BYTES) == 0
    assert linear_differs(X86_AVX2, 4, (17, 33)) > 0


PIXELS = [
    Case("window", 272, 240, 3, 3, padding=(0, 0, 0, 0), clip=(3, 252), residual=True),
    Case("dilated", 272, 250, 7, 6, stride=(3, 2), padding=(-1, -1, -1, 0), dilation=(2, 2)),
    Case("pointwise", 1040, 520, 1, 1, kernel=(1, 1), padding=(0, 0, 0, 0)),
    Case("grouped", 768, 360, 2, 2, kernel=(2, 2), padding=(0, 0, 0, 0), groups=2),
]


def few_bits(case: Case, bits: int) -> Numbers:
    """Operands with the weights limited to a width, its least code included."""
    half = 1 << (bits - 1)
    numbers = make_numbers(case, weight_limit=half)
    return replace(numbers, weight=numbers.weight.clamp(max=half - 1))


@pytest.mark.parametrize(
    ("case", "bits"), [(case, 4) for case in PIXELS] + [(PIXELS[0], 2), (PIXELS[1], 3)], ids=str
)
def test_single_pixels_of_large_layers_are_packed(case: Case, bits: int) -> None:
    kernel = check(
        case, X86_AVX2, few_bits(case, bits), residual=RESIDUAL if case.residual else None,
        abi=Abi.BARE,
    )  # fmt: skip
    assert kernel.weight_bits == (2 if bits == 2 else 4)
    assert undefined_symbols(kernel, X86_AVX2) == []


@pytest.mark.qemu
@pytest.mark.parametrize("target", [CORTEX_A53, CORTEX_A76], ids=str)
def test_single_pixels_are_packed_on_arm(target: Target) -> None:
    kernel = check(PIXELS[0], target, few_bits(PIXELS[0], 4), residual=RESIDUAL)
    assert kernel.weight_bits == 4


def chosen(target: Target, bits: int, shape: tuple[int, int, int]) -> Kernel:
    """The kernel of a linear layer with `(rows, inputs, outputs)`."""
    rows, k, o = shape
    source, output = image((rows, k), target.mac.storage), image((rows, o), "int32")
    return linear_accumulate_kernel(
        source, output, input_zero_point=0, weight=codes(bits, o, k).numpy(),
        bias=np.zeros(o, np.int32), target=target,
    )  # fmt: skip


@pytest.mark.parametrize(
    "target",
    [X86_AVX2, X86_VNNI, CORTEX_A76, pytest.param(CORTEX_A53, marks=pytest.mark.slow)],
    ids=str,
)
def test_packed_where_large_weights_are_read_once(target: Target) -> None:
    large = (1, 1024, 520)
    kernels = {bits: chosen(target, bits, large) for bits in (2, 3, 4, 5)}
    assert [kernel.weight_bits for kernel in kernels.values()] == [2, 4, 4, 8]
    sizes = {bits: kernel.constants[0].nbytes for bits, kernel in kernels.items()}
    assert sizes[2] < 0.35 * sizes[5] and sizes[4] < 0.53 * sizes[5]
    assert chosen(target, 4, (2, 1024, 520)).weight_bits == 8, "read twice"
    assert chosen(target, 4, (1, 512, 520)).weight_bits == 8, "small enough for the cache"


def test_not_packed_without_vectors_of_bytes() -> None:
    assert chosen(GENERIC, 4, (1, 1024, 520)).weight_bits == 8


def test_bits_of_codes() -> None:
    assert [code_bits(codes(bits, 500).numpy()) for bits in range(2, 9)] == [*range(2, 9)]


def test_forms_that_cannot_hold_the_codes_are_errors() -> None:
    with pytest.raises(UnsupportedError, match="5 bits cannot be packed at 4"):
        linear_differs(X86_AVX2, 5, (16, 8), WeightForm(4))
    with pytest.raises(UnsupportedError, match="no idiom unpacks them"):
        linear_differs(GENERIC, 4, (16, 8))
