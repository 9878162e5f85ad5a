"""Every schedule a kernel offers computes what the reference does; how schedules are called."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxquant.numerics import reference
from fxquant.targets import CORTEX_A53, GENERIC, X86_AVX2, X86_VNNI, Target
from tests.backend.conv_cases import (
    CASES,
    RESIDUAL,
    Case,
    assert_equal,
    check,
    conv_kernel,
    make_numbers,
)
from tests.backend.kernel_harness import from_storage, run_kernel, to_storage
from tvm_backend.emit.epilogue import OutputGrid, Residual
from tvm_backend.emit.linear import linear_kernel
from tvm_backend.kernel import Kernel, Variants
from tvm_backend.layout import image

NAMED = {case.name: case for case in CASES}
TESTED = ("odd", "residual", "stem", "grouped", "depthwise", "depthwise_5x5")
FAST = ("odd", "residual", "depthwise")


def kernel_of(case: Case, target: Target, seed: int = 0, weight_limit: int = 128) -> Kernel:
    n = make_numbers(case, seed, weight_limit)
    second = None
    if case.residual:
        second = Residual(image(case.output_shape, target.mac.storage), *RESIDUAL.values())
    return conv_kernel(case, target, n, second)


def variants_of(kernel: Kernel) -> Variants:
    assert kernel.variants is not None
    return kernel.variants


def _sample(target: Target, name: str, count: int) -> list[int]:
    """Positions of the best schedules of all idioms and orders, and of some others."""
    ranked = variants_of(kernel_of(NAMED[name], target)).ranked()
    rng = np.random.default_rng(0)
    others = rng.choice(len(ranked), min(count, len(ranked)), replace=False)
    return sorted({*range(min(count, len(ranked))), *map(int, others)})


@pytest.mark.parametrize("name", FAST)
def test_schedules_equal_the_reference(name: str) -> None:
    case = NAMED[name]
    numbers = make_numbers(case)
    kernels = [
        check(case, X86_AVX2, numbers, residual=RESIDUAL if case.residual else None, variant=i)
        for i in _sample(X86_AVX2, name, 2)
    ]
    assert len({kernel.name for kernel in kernels}) == len(kernels) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize(
    "target",
    [X86_VNNI, X86_AVX2, GENERIC, pytest.param(CORTEX_A53, marks=pytest.mark.qemu)],
    ids=str,
)
def test_many_schedules_equal_the_reference(target: Target, name: str) -> None:
    case = NAMED[name]
    numbers = make_numbers(case)
    for i in _sample(target, name, 12):
        check(case, target, numbers, residual=RESIDUAL if case.residual else None, variant=i)


def test_schedules_of_linear_layers_keep_their_storages() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 40), generator=generator).to(torch.uint8)
    weight = torch.randint(-60, 60, (50, 40), generator=generator).to(torch.int8)
    bias = torch.zeros(50, dtype=torch.int32)
    multiplier = torch.full((50,), 20000, dtype=torch.int16)
    shift = torch.full((50,), 6, dtype=torch.int8)
    source, output = image((3, 40), "uint8"), image((3, 50), "uint8")
    kernel = linear_kernel(
        source, output, OutputGrid(9, 0, 255), input_zero_point=3, weight=weight.numpy(),
        bias=bias.numpy(), multiplier=multiplier.numpy(), shift=shift.numpy(), target=X86_AVX2,
    )  # fmt: skip
    expected = reference.linear(
        x, weight, bias, multiplier, shift, input_zero_point=3, output_zero_point=9, qmin=0,
        qmax=255,
    )  # fmt: skip
    for variant in variants_of(kernel).ranked()[:3]:
        made = kernel.scheduled(variant)
        assert made.inputs == (source,) and made.output == output
        result = run_kernel(made, X86_AVX2, to_storage(x, source))
        assert_equal(from_storage(result, output, (3, 50)), expected, made)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize("target", [X86_AVX2, X86_VNNI, CORTEX_A53], ids=str)
def test_the_default_is_the_first_schedule(target: Target, name: str) -> None:
    kernel = kernel_of(NAMED[name], target)
    variants = variants_of(kernel)
    ranked = variants.ranked()
    assert ranked[0].name == variants.default
    assert len({variant.name for variant in ranked}) == len(ranked) > 2
    assert ranked[0].make().name == kernel.name
    for variant in (ranked[0], ranked[-1]):
        tile, _, idiom = variant.name.partition("__")
        made = variant.make().name
        assert f"_{tile}" in made and made.endswith(f"__{idiom}")


def test_every_exact_idiom_and_order_is_worth_trying_early() -> None:
    case = Case("large", 64, 64, 8, 8)
    names = [v.name for v in variants_of(kernel_of(case, X86_AVX2, 0, 20)).ranked()]
    idioms = [name.partition("__")[2] for name in names]
    assert set(idioms[:8]) == set(idioms) and len(set(idioms)) == 6
    assert {name.partition("__")[0][-1] for name in names[:12]} == {"p", "c"}


def test_tiles_that_cover_everything_have_one_order() -> None:
    kernel = kernel_of(Case("one", 16, 8, 1, 1, (1, 1), padding=(0, 0, 0, 0)), X86_AVX2)
    tiles = [v.name.partition("__")[0][:-1] for v in variants_of(kernel).ranked()]
    idioms = [v.name.partition("__")[2] for v in variants_of(kernel).ranked()]
    assert len(set(zip(tiles, idioms, strict=True))) == len(tiles)


def test_problem_names_are_stable() -> None:
    """Files of schedules hold these names: a change makes them useless."""
    case = NAMED["residual"]
    name = variants_of(kernel_of(case, X86_AVX2)).problem
    assert name == (
        "qu8_qu8_qc8w_conv2d_2x4x5x33s48p1_1_1_1_2x4x5x96p0_1_1_0_k3x3s1x1p1_1_add2x4x5x96"
        "__winograd2+pmaddubsw_256_x1+pmaddubsw_256_x2+pmaddubsw_256_x4+pmaddwd_256"
        "+pmaddwd_s16_256+winograd4"
    )


def test_problem_names_do_not_know_the_numbers_of_a_calibration() -> None:
    case = NAMED["depthwise"]
    small = [variants_of(kernel_of(case, X86_VNNI, seed)).problem for seed in (0, 1)]
    clipped = variants_of(kernel_of(replace(case, clip=(3, 200)), X86_VNNI)).problem
    assert small[0] == small[1] == clipped
    strided = variants_of(kernel_of(replace(case, stride=(2, 2)), X86_VNNI)).problem
    assert strided != clipped


def test_problems_of_other_legal_idioms_differ() -> None:
    """Depthwise chains are for small codes only: layers without them are another problem."""
    case = NAMED["depthwise"]
    wide = variants_of(kernel_of(case, X86_AVX2))
    narrow = variants_of(kernel_of(case, X86_AVX2, weight_limit=8))
    assert wide.problem != narrow.problem
    assert {v.name for v in wide.ranked()} < {v.name for v in narrow.ranked()}
