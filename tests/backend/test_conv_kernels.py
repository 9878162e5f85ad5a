"""Convolution and linear kernels equal the reference operators on every target."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fxquant.errors import UnsupportedError
from fxquant.numerics import reference
from fxquant.numerics.width import WIDTH_8
from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    CORTEX_A76,
    GENERIC,
    NEOVERSE_V1,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_VNNI,
    Target,
)
from tests.backend.conv_cases import (
    ARM,
    BOTH,
    CASES,
    HOST,
    RESIDUAL,
    Case,
    Numbers,
    assert_equal,
    check,
    conv_kernel,
    extreme,
    make_numbers,
)
from tests.backend.kernel_harness import (
    compile_bare,
    from_storage,
    largest_loop,
    run_kernel,
    to_storage,
    undefined_symbols,
)
from tvm_backend.emit.conv import conv2d_accumulate_kernel, conv2d_kernel
from tvm_backend.emit.epilogue import OutputGrid, Residual
from tvm_backend.emit.linear import linear_accumulate_kernel, linear_kernel
from tvm_backend.kernel import Abi
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE, Image, image
from tvm_backend.schedule.tiles import Tile

CORE_TARGETS = (X86_VNNI, X86_AVX2, CORTEX_A53)
CORE_CASES = ("odd", "stem", "residual", "grouped_odd", "depthwise", "depthwise_5x5")


def _target_cases() -> list:
    """Every target with every case; what repeats the code paths of others is marked slow."""
    product = []
    for target in (*HOST, *ARM):
        for case in CASES:
            marks = [pytest.mark.qemu] if target in ARM else []
            if target not in CORE_TARGETS and case.name not in CORE_CASES:
                marks.append(pytest.mark.slow)
            product.append(pytest.param(target, case, marks=marks, id=f"{target}-{case}"))
    return product


@pytest.mark.parametrize(("target", "case"), _target_cases())
def test_conv2d_equals_reference(target: Target, case: Case) -> None:
    """On the host with guard pages behind every buffer."""
    residual = RESIDUAL if case.residual else None
    check(case, target, make_numbers(case), residual=residual, abi=Abi.BARE)


@pytest.mark.parametrize("kernel", [3, 7])
def test_kernels_over_the_network_input_do_not_spill(kernel: int) -> None:
    """Neighbouring pixels load the same words; keeping them all would need too many registers."""
    case = Case(
        "input", 3, 64, 6, 224, (kernel, kernel), (2, 2), (kernel // 2,) * 4,
        multiple=INPUT_CHANNEL_MULTIPLE,
    )  # fmt: skip
    n = make_numbers(case)
    made = conv_kernel(case, X86_VNNI, n, tile=Tile(1, 6, 4, pixels_first=True))
    assembly = largest_loop(made, X86_VNNI, "vpdpbusd")
    products = assembly[: assembly.rindex("vpdpbusd")].splitlines()
    spilled = [line for line in products if re.search(r"%zmm\d+, -?\d*\(%rsp", line)]
    assert len(spilled) <= 2


def test_avx_vnni_needs_no_avx512() -> None:
    """`vpdpbusd` on 256 bits, registers 0 to 15."""
    case, n = CASES[0], make_numbers(CASES[0])
    kernel = conv_kernel(case, X86_AVX_VNNI, n)
    assembly = compile_bare(kernel, X86_AVX_VNNI).inspect_source("asm")
    lines = [line for line in assembly.splitlines() if "vpdpbusd\t" in line]
    assert lines and all("{vex}" in line and "ymm" in line for line in lines)
    assert "zmm" not in assembly and "ymm16" not in assembly


@pytest.mark.parametrize("name", ["odd", "residual", "depthwise"])
def test_packed_abi_equals_reference(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    check(case, X86_VNNI, make_numbers(case), residual=RESIDUAL if case.residual else None)


@pytest.mark.parametrize(
    "tile",
    [
        Tile(1, 14, 2, True), Tile(1, 6, 4, False), Tile(2, 7, 2, False), Tile(1, 1, 16, True),
        Tile(1, 8, 3, True), Tile(3, 2, 1, False), Tile(1, 4, 7, True),
    ],
    ids=str,
)  # fmt: skip
def test_every_tile_gives_the_same_result(tile: Tile) -> None:
    case = Case("tiles", 20, 272, 5, 16, n=2, output_halo=(1, 1, 1, 1))
    check(case, X86_VNNI, make_numbers(case), tile=tile)


def test_channels_outermost_with_threads() -> None:
    case = Case("large_weights", 256, 256, 4, 5)
    kernel = check(case, X86_VNNI, make_numbers(case))
    assert "c__" in kernel.name


ALL_SHIFTS = Case("all_shifts", 3, 39 * 3, 4, 8, kernel=(1, 1), padding=(0, 0, 0, 0))


def _shift_numbers(seed: int) -> Numbers:
    """Each s in -14..24 on three channels, accumulators around the int16 bounds of t."""
    rng = np.random.default_rng(seed)
    shift = np.tile(np.arange(-14, 25), 3)
    bound = np.ldexp(float(WIDTH_8.word_max), shift)
    bias = rng.uniform(-1.5, 1.5, len(shift)) * np.minimum(bound, 2.0**29)
    plain = make_numbers(ALL_SHIFTS, seed)
    multiplier = rng.choice([1 << 14, (1 << 15) - 1, 23170], len(shift))
    return replace(
        plain,
        weight=plain.weight // 64,
        bias=torch.from_numpy(np.trunc(bias).astype(np.int32)),
        multiplier=torch.from_numpy(multiplier.astype(np.int16)),
        shift=torch.from_numpy(shift.astype(np.int8)),
    )


@pytest.mark.parametrize("target", BOTH, ids=str)
def test_all_shifts_and_zero_points(target: Target) -> None:
    for seed, zero_point in enumerate((0, 1, 127, 128, 254, 255)):
        case = replace(ALL_SHIFTS, output_zero_point=zero_point, input_zero_point=255 - zero_point)
        check(case, target, _shift_numbers(seed))


@pytest.mark.parametrize("shift", [-14, -8, -7, -6, 0, 1, 8, 9, 10, 24])
def test_residual_shifts(shift: int) -> None:
    _check_residual(X86_VNNI, shift)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-14, -8, -7, -1, 0, 1, 8, 9, 24])
@pytest.mark.parametrize("target", [X86_AVX512, X86_AVX2, GENERIC], ids=str)
def test_residual_shifts_elsewhere(target: Target, shift: int) -> None:
    _check_residual(target, shift)


@pytest.mark.qemu
@pytest.mark.parametrize("shift", [-14, 9])
@pytest.mark.parametrize("target", [CORTEX_A53, NEOVERSE_V1, ARMV7_NEON], ids=str)
def test_residual_shifts_on_arm(target: Target, shift: int) -> None:
    _check_residual(target, shift)


def _check_residual(target: Target, shift: int) -> None:
    """Every residual code meets the extremes of u, for several zero points."""
    case = Case("residuals", 3, 112, 16, 16, kernel=(1, 1), padding=(0, 0, 0, 0))
    numbers = make_numbers(case)
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(case.output_shape)
    numbers = replace(numbers, residual=codes.contiguous(), shift=numbers.shift.abs())
    for zero_point, multiplier in ((0, 1 << 14), (255, (1 << 15) - 1), (100, 20000)):
        residual = {
            "residual_zero_point": zero_point,
            "residual_multiplier": multiplier,
            "residual_shift": shift,
        }
        case = replace(case, output_zero_point=255 - zero_point)
        check(case, target, numbers, residual=residual)


@pytest.mark.parametrize("name", ["pointwise", "depthwise_odd"])
@pytest.mark.parametrize("target", BOTH, ids=str)
def test_accumulators_equal_reference(target: Target, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    n, problem = make_numbers(case), case.problem(target)
    problem = replace(problem, output=replace(problem.output, dtype="int32"))
    kernel = conv2d_accumulate_kernel(
        problem, weight=n.weight.numpy(), bias=n.bias.numpy(), target=target
    )
    x = to_storage(n.x, problem.source, case.input_zero_point)
    result = run_kernel(kernel, target, x, abi=Abi.BARE)
    got = from_storage(result, problem.output, case.output_shape)
    expected = reference.conv2d_accumulate(n.x, n.weight, n.bias, **case.window())
    assert_equal(got, expected, kernel)


LINEAR = [(1, 33, 1000), (3, 4, 16), (2, 7, 40, 31)]


@pytest.mark.parametrize("shape", LINEAR, ids=str)
@pytest.mark.parametrize("target", BOTH, ids=str)
def test_linear_equals_reference(target: Target, shape: tuple[int, ...]) -> None:
    *rows, k, o = shape
    g = torch.Generator().manual_seed(3)
    x = extreme(g, 0, 255, (*rows, k)).to(torch.uint8)
    weight = extreme(g, -128, 127, (o, k)).to(torch.int8)
    bias = torch.randint(-9000, 9001, (o,), generator=g, dtype=torch.int32)
    multiplier = torch.randint(1 << 14, 1 << 15, (o,), generator=g).to(torch.int16)
    shift = torch.randint(-1, 6, (o,), generator=g).to(torch.int8)
    source, output = (image((*rows, c), target.mac.storage) for c in (k, o))
    common = {"weight": weight.numpy(), "bias": bias.numpy(), "target": target}
    stored = to_storage(x, source)

    kernel = linear_kernel(
        source, output, OutputGrid(9, 0, 250), input_zero_point=77,
        multiplier=multiplier.numpy(), shift=shift.numpy(), **common,
    )  # fmt: skip
    result = run_kernel(kernel, target, stored, abi=Abi.BARE)
    expected = reference.linear(
        x, weight, bias, multiplier, shift,
        input_zero_point=77, output_zero_point=9, qmin=0, qmax=250,
    )  # fmt: skip
    assert_equal(from_storage(result, output, (*rows, o)), expected, kernel)

    wide = replace(output, dtype="int32")
    kernel = linear_accumulate_kernel(source, wide, input_zero_point=77, **common)
    result = run_kernel(kernel, target, stored, abi=Abi.BARE)
    expected = reference.linear_accumulate(x, weight, bias, input_zero_point=77)
    assert_equal(from_storage(result, wide, (*rows, o)), expected, kernel)


@pytest.mark.parametrize("name", ["odd", "residual", "depthwise"])
def test_bare_kernels_need_no_library(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    residual = RESIDUAL if case.residual else None
    kernel = check(case, X86_VNNI, make_numbers(case), residual=residual)
    assert undefined_symbols(kernel, X86_VNNI) == []


def test_dot_products_of_a_tile_stay_in_registers() -> None:
    """24 accumulators, six registers of activations, and weights one after the other."""
    case, target = Case("loop", 64, 64, 6, 24), CORTEX_A76
    n = make_numbers(case)
    kernel = conv_kernel(case, target, n, tile=Tile(1, 6, 4, True))
    body = largest_loop(kernel, target, "sdot")
    assert body.count("\tsdot\t") == 4 * 6 * 4
    assert "[sp" not in body


def test_equal_names_are_equal_code() -> None:
    """Numbers are data: only the form (left shifts, clip, residual shift) changes the code."""
    case = next(c for c in CASES if c.name == "odd")
    first, second = make_numbers(case, 1), make_numbers(case, 2)
    kernels = [
        conv2d_kernel(
            replace(case, output_zero_point=zp).problem(X86_VNNI), weight=n.weight.numpy(),
            bias=n.bias.numpy(), multiplier=n.multiplier.numpy(), shift=n.shift.abs().numpy(),
            target=X86_VNNI,
        )
        for n, zp in ((first, 3), (second, 200))
    ]  # fmt: skip
    assert kernels[0].name == kernels[1].name
    assert str(kernels[0].build(Abi.BARE)) == str(kernels[1].build(Abi.BARE))


def test_form_is_part_of_the_name() -> None:
    case, n = CASES[0], make_numbers(CASES[0])
    arguments = {
        "weight": n.weight.numpy(), "bias": n.bias.numpy(), "multiplier": n.multiplier.numpy(),
        "target": X86_VNNI,
    }  # fmt: skip
    ones = np.ones(case.o, np.int8)
    storage = image(case.output_shape, "uint8")
    names = {
        conv2d_kernel(problem, shift=shift, **arguments).name
        for problem, shift in (
            (case.problem(X86_VNNI), ones),
            (case.problem(X86_VNNI), -ones),
            (replace(case, clip=(0, 200)).problem(X86_VNNI), ones),
            (case.problem(X86_VNNI, Residual(storage, 0, 1 << 14, 1)), ones),
            (case.problem(X86_VNNI, Residual(storage, 0, 1 << 14, -1)), ones),
        )
    }
    assert len(names) == 5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"padding": (2, 1, 1, 1)}, "output size"),
        ({"source": image((1, 16, 6, 14), "uint8")}, "halo"),
        ({"source": Image(2, 6, 14, 16, 16, (1, 1, 1, 1), "uint8")}, "batch"),
        ({"groups": 3}, "groups"),
    ],
)
def test_inconsistent_problem_is_an_error(changes: dict, why: str) -> None:
    problem = CASES[0].problem(X86_VNNI)
    with pytest.raises(UnsupportedError, match=why):
        replace(problem, **changes)
