"""Convolutions and linear layers that read or make 16-bit codes equal the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxquant.numerics import reference
from fxquant.numerics.width import WIDTH_16
from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    GENERIC,
    X86_AVX2,
    X86_AVX_VNNI,
    X86_VNNI,
    Target,
)
from tests.backend.conv_cases import (
    CASES,
    Case,
    assert_equal,
    check,
    conv_kernel,
    extreme,
    make_numbers,
)
from tests.backend.kernel_harness import from_storage, largest_loop, run_kernel, to_storage
from tvm_backend.emit import conv_stage
from tvm_backend.emit.conv import conv2d_accumulate_kernel
from tvm_backend.emit.conv_stage import conv_macs
from tvm_backend.emit.epilogue import OutputGrid
from tvm_backend.emit.linear import linear_accumulate_kernel, linear_kernel
from tvm_backend.kernel import Abi
from tvm_backend.layout import image

TARGETS = [
    X86_VNNI, X86_AVX2, GENERIC,
    *(pytest.param(t, marks=pytest.mark.qemu) for t in (CORTEX_A53, ARMV7_NEON)),
]  # fmt: skip
each_target = pytest.mark.parametrize("target", TARGETS, ids=str)
# Bits of input, result and residual, at least one of them 16.
MIXES = ((16, 16, 16), (16, 8, 8), (8, 16, 16), (8, 8, 16), (16, 16, 8), (16, 8, 16), (8, 16, 8))
NAMES = ("odd", "stem", "strided_dilated", "crop", "residual", "grouped_odd", "depthwise",
         "depthwise_5x5", "depthwise_multiplier")  # fmt: skip


def wide(case: Case, bits: int, width: int, residual_bits: int) -> Case:
    """A case at other widths, with zero points and a clip that need them."""
    top = (1 << width) - 1
    low, high = (code * top // 255 for code in case.clip)
    return replace(
        case, bits=bits, width=width, residual_bits=residual_bits, clip=(low, high),
        multiple=16 if bits == 16 else case.multiple,
        input_zero_point=case.input_zero_point * ((1 << bits) - 1) // 255,
        output_zero_point=case.output_zero_point * top // 255,
    )  # fmt: skip


def residual_for(case: Case) -> dict[str, int] | None:
    """Its operand lies on half of the result's range."""
    if not case.residual:
        return None
    share = case.residual_bits - case.width - (case.width - 2)
    top = (1 << case.residual_bits) - 1
    return {
        "residual_zero_point": top // 3,
        "residual_multiplier": 5 << (2 * case.width - 4),
        "residual_shift": share,
    }


@each_target
@pytest.mark.parametrize("name", NAMES)
def test_conv2d_equals_reference(target: Target, name: str) -> None:
    """On the host with guard pages behind every buffer; the mix of widths goes round the cases."""
    case = next(c for c in CASES if c.name == name)
    mixes = MIXES if name == "residual" else MIXES[NAMES.index(name) % 2 :: 2][:2]
    for mix in mixes:
        mixed = wide(case, *mix)
        check(mixed, target, make_numbers(mixed), residual=residual_for(mixed), abi=Abi.BARE)


@each_target
def test_every_shift(target: Target) -> None:
    """Each s on one channel, accumulators around the bounds of t."""
    for bits, width in ((16, 16), (8, 16), (16, 8)):
        low, word = (-30, 31) if width == 16 else (-14, 15)
        shift = np.arange(low, 25)
        case = Case("shifts", 3, len(shift), 4, 8, (1, 1), padding=(0, 0, 0, 0))
        case = wide(case, bits, width, 8)
        numbers = make_numbers(case)
        rng = np.random.default_rng(0)
        largest = 2.0**29 if bits == 8 else 2.0**44
        bias = rng.uniform(-1.5, 1.5, len(shift)) * np.minimum(2.0 ** (word + shift), largest)
        numbers = replace(
            numbers, weight=numbers.weight // 64, shift=torch.from_numpy(shift.astype(np.int8)),
            bias=torch.from_numpy(np.trunc(bias)).to(numbers.bias.dtype),
        )  # fmt: skip
        for zero_point in (0, (1 << width) - 1):
            check(replace(case, output_zero_point=zero_point), target, numbers)


def test_accumulators_are_as_wide_as_the_weights_demand() -> None:
    """int32 where it is proved, int64 one step beyond: both exact at the extreme codes."""
    case = wide(Case("limit", 16, 8, 1, 1, (1, 1), padding=(0, 0, 0, 0)), 16, 16, 16)
    numbers = make_numbers(case)
    x = torch.full(numbers.x.shape, 65535, dtype=torch.int32).to(torch.uint16)
    folded = 32768 - case.input_zero_point  # times the weights: what folding adds to the bias
    largest = (1 << 31) - 1 - (1 << (WIDTH_16.max_shift - 1))
    weight = torch.full_like(numbers.weight, 127)
    total = 127 * 16
    for extra, accumulator in ((0, "int32"), (1, "int64")):
        bias = largest - total * 32768 - total * folded + extra
        limit = replace(numbers, x=x, weight=weight, bias=torch.full((8,), bias))
        for target in (X86_AVX2, GENERIC):
            problem = case.problem(target)
            (mac,) = conv_macs(problem, weight.numpy(), limit.bias.numpy(), target)
            assert mac.idiom.accumulator == accumulator
            check(case, target, limit)


@each_target
@pytest.mark.parametrize("name", ["pointwise", "depthwise_odd"])
def test_accumulators_equal_reference(target: Target, name: str) -> None:
    case = wide(next(c for c in CASES if c.name == name), 16, 16, 16)
    n, problem = make_numbers(case), case.problem(target)
    problem = replace(problem, output=replace(problem.output, dtype="int64"))
    for bias in (n.bias, n.bias + (1 << 40)):
        kernel = conv2d_accumulate_kernel(
            problem, weight=n.weight.numpy(), bias=bias.numpy(), target=target
        )
        x = to_storage(n.x, problem.source, case.input_zero_point)
        result = run_kernel(kernel, target, x, abi=Abi.BARE)
        expected = reference.conv2d_accumulate(n.x, n.weight, bias, **case.window())
        assert_equal(from_storage(result, problem.output, case.output_shape), expected, kernel)


@each_target
@pytest.mark.parametrize("shape", [(1, 33, 100), (2, 7, 40, 31), (1, 1200, 5)], ids=str)
def test_linear_equals_reference(target: Target, shape: tuple[int, ...]) -> None:
    """The first output sums extreme codes only: 1200 of them leave int32."""
    *rows, k, o = shape
    g = torch.Generator().manual_seed(3)
    x = extreme(g, 0, 65535, (*rows, k))
    weight = extreme(g, -127, 127, (o, k)).to(torch.int8)
    x[0], weight[0] = 65535, 127
    x = x.to(torch.uint16)
    bias = torch.randint(-9000, 9001, (o,), generator=g)
    multiplier = torch.randint(1 << 30, 1 << 31, (o,), generator=g).to(torch.int32)
    shift = torch.randint(-3, 3, (o,), generator=g).to(torch.int8)
    source, output = (image((*rows, c), "int16") for c in (k, o))
    common = {"weight": weight.numpy(), "bias": bias.numpy(), "target": target}
    kernel = linear_kernel(
        source, output, OutputGrid(30000, 50, 65000), input_zero_point=17777,
        multiplier=multiplier.numpy(), shift=shift.numpy(), **common,
    )  # fmt: skip
    result = run_kernel(kernel, target, to_storage(x, source), abi=Abi.BARE)
    expected = reference.linear(
        x, weight, bias, multiplier, shift,
        input_zero_point=17777, output_zero_point=30000, qmin=50, qmax=65000, width=16,
    )  # fmt: skip
    assert_equal(from_storage(result, output, (*rows, o)), expected, kernel)
    stored = replace(output, dtype="int64")
    kernel = linear_accumulate_kernel(source, stored, input_zero_point=17777, **common)
    result = run_kernel(kernel, target, to_storage(x, source), abi=Abi.BARE)
    expected = reference.linear_accumulate(x, weight, bias, input_zero_point=17777)
    assert_equal(from_storage(result, stored, (*rows, o)), expected, kernel)


def test_int32_accumulators_without_proof_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: what the proof is for."""
    monkeypatch.setattr(conv_stage, "fits_int32", lambda *_: True)
    with pytest.raises(AssertionError, match="differ"):
        test_linear_equals_reference(GENERIC, (1, 1200, 5))


def test_equal_names_are_equal_code() -> None:
    """Numbers are data; widths and accumulators are part of the name."""
    case = next(c for c in CASES if c.name == "residual")
    names = set()
    for mix in MIXES:
        mixed = wide(case, *mix)
        kernels = [
            check(mixed, X86_AVX2, make_numbers(mixed, seed), residual=residual_for(mixed))
            for seed in (1, 2)
        ]
        assert kernels[0].name == kernels[1].name
        assert str(kernels[0].build(Abi.BARE)) == str(kernels[1].build(Abi.BARE))
        names.add(kernels[0].name)
    assert len(names) == len(MIXES)


def test_neon_picks_activations_by_index() -> None:
    """No activation is broadcast by an instruction of its own."""
    case = Case("loop", 64, 64, 8, 8, bits=16)
    kernel = conv_kernel(case, CORTEX_A53, make_numbers(case))
    products = [
        line
        for line in largest_loop(kernel, CORTEX_A53, "smlal").splitlines()
        if line.startswith("\tsmlal")
    ]
    assert len(products) > 16 and all(".h[" in line for line in products)


@pytest.mark.parametrize("target", [X86_VNNI, X86_AVX_VNNI], ids=str)
def test_vnni_multiplies_words_by_one_instruction(target: Target) -> None:
    """LLVM would take it apart where it believes that only the chain of sums counts."""
    case = Case("loop", 64, 64, 8, 8, bits=16)
    assembly = largest_loop(conv_kernel(case, target, make_numbers(case)), target, "vpdpwssd")
    assert assembly.count("vpdpwssd") > 8 and "vpmaddwd" not in assembly
