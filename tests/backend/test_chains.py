"""int16 chains: the bound is exact, and kernels at the bound equal the reference operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import TargetError
from fxquant.numerics import reference
from fxquant.targets import ARMV7_NEON, CORTEX_A53, X86_AVX2, X86_AVX512, MacIdiom, Target, idioms
from tests.backend.conv_cases import (
    CASES,
    RESIDUAL,
    Case,
    Numbers,
    check,
    conv_kernel,
    make_numbers,
)
from tests.backend.kernel_harness import (
    compile_bare,
    from_storage,
    largest_loop,
    run_kernel,
    to_storage,
)
from tvm_backend.emit import conv_rest
from tvm_backend.emit.conv import conv2d_accumulate_kernel
from tvm_backend.emit.conv_rest import rest_of, split_codes
from tvm_backend.kernel import Abi
from tvm_backend.macs.chain import chain_bounds, chain_is_exact
from tvm_backend.schedule.tiles import plan_tiles, split

CHAINS = (*idioms.PMADDUBSW_256, *idioms.SMLAL_SADALP, *idioms.SMLAL_SADDW[2:])
ROW_CHAINS = (*idioms.PMADDUBSW_256, *idioms.SMLAL_SADALP)
BOUNDS = ((0, 255), (0, 127), (-128, 127), (-128, -1))  # of activations as stored
SEVEN_BITS = ("odd", "pointwise", "wide_block", "strided_dilated", "stem", "residual", "grouped",
              "depthwise", "depthwise_odd", "depthwise_5x5", "depthwise_dilated")  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHAINS), st.data())
def test_bound_is_what_extreme_activations_reach(idiom: MacIdiom, data: st.DataObject) -> None:
    """Against every combination of extreme activations of one int16 element."""
    low, high = data.draw(st.sampled_from(BOUNDS))
    codes = np.array(data.draw(st.lists(st.integers(-128, 127), min_size=1, max_size=16)))
    codes = np.pad(codes, (0, -len(codes) % idiom.reduction))
    sums = [0]
    elements = 1 if idiom in idioms.SMLAL_SADDW else 2
    products = idiom.reduction // elements
    for chain in range(0, len(codes), idiom.chain * idiom.reduction):
        steps = codes[chain : chain + idiom.chain * idiom.reduction].reshape(-1, elements, products)
        for element in range(elements):
            weights = steps[:, element].reshape(-1)
            bounds = {0, low, high} if low * high > 0 else {low, high}
            extremes = product((min(bounds), max(bounds)), repeat=len(weights))
            sums += [int(np.dot(weights, x)) for x in extremes]
    assert chain_bounds(codes, idiom, low, high) == (min(sums), max(sums))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ROW_CHAINS), st.sampled_from(BOUNDS), st.integers(0, 1 << 30))
def test_split_fits_and_adds_up(idiom: MacIdiom, bounds: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (3, idiom.lanes, 12, 5)).astype(np.int8)  # [V, L, E, taps]
    main, rest = split_codes(codes.swapaxes(2, 3), idiom, *bounds)
    assert chain_is_exact(main, idiom, *bounds)
    assert (main.astype(int) + rest == codes.swapaxes(2, 3)).all()

    packed, steps = rest_of(codes, split(3, 2), idiom, *bounds)
    total = packed.astype(int)
    for block, tap, channel, weights in zip(
        steps.block, steps.tap, steps.channel, steps.weights, strict=True
    ):
        assert chain_is_exact(weights, replace(idiom, chain=1), *bounds)
        vectors = total[2 * block : 2 * block + 2]
        vectors[:, :, channel : channel + idiom.reduction, tap] += weights[: len(vectors)]
    assert (total == codes).all()


def _seven_bits(case: Case) -> tuple[Case, Numbers]:
    case = replace(case, input_qmax=127, input_zero_point=min(case.input_zero_point, 127))
    return case, make_numbers(case, weight_limit=63)


def _targets(names: tuple[str, ...]) -> list:
    cases = [case for case in CASES if case.name in names]
    return [
        pytest.param(target, case, marks=[pytest.mark.qemu] if target.emulator else [],
                     id=f"{target}-{case}")
        for target in (X86_AVX2, X86_AVX512, CORTEX_A53, ARMV7_NEON)
        for case in cases
    ]  # fmt: skip


@pytest.mark.parametrize(("target", "case"), _targets(SEVEN_BITS))
def test_seven_bits_equal_reference(target: Target, case: Case) -> None:
    case, numbers = _seven_bits(case)
    kernel = check(case, target, numbers, residual=RESIDUAL if case.residual else None)
    assert kernel.name.endswith(tuple(idiom.name for idiom in (*target.chains, *target.taps)))


@pytest.mark.parametrize("name", ["smlal_sadalp_x4", "smlal_sadalp_x8"])
def test_long_chains_do_not_keep_their_weights_on_the_stack(name: str) -> None:
    """LLVM keeps the order of loads; all weights of a chain at once were most of the registers."""
    case, n = _seven_bits(Case("late", 384, 96, 4, 14, kernel=(1, 1), padding=(0, 0, 0, 0)))
    chains = tuple(idiom for idiom in CORTEX_A53.chains if idiom.name == name)
    target = replace(CORTEX_A53, chains=chains)
    kernel = conv_kernel(case, target, replace(n, weight=n.weight // 8))
    assert kernel.name.endswith(name)
    instructions = largest_loop(kernel, target, "smlal").splitlines()
    products = [line for line in instructions if "smlal" in line or "smull" in line]
    stacked = [line for line in instructions if "[sp" in line]
    assert len(products) >= 24 and len(stacked) <= len(products) // 8


AT_THE_BOUND = Case("at_the_bound", 64, 24, 3, 5, kernel=(1, 3), padding=(0, 0, 1, 1))


def _unsigned_at_the_bound() -> Numbers:
    """Largest activations; pairs whose sum is 128, the most that 255 allows, or 129."""
    numbers = make_numbers(AT_THE_BOUND)
    weight = torch.zeros_like(numbers.weight)
    weight[:, :2] = 64
    weight[3, 1], weight[17, 0] = 65, 65
    weight[5, :2], weight[6, :2] = -64, -65
    return replace(numbers, weight=weight, x=torch.full_like(numbers.x, 255))


def _signed_at_the_bound() -> Numbers:
    """Smallest stored activations, -128; even channels whose sum is 255, the most, or 256."""
    numbers = make_numbers(AT_THE_BOUND)
    weight = torch.zeros_like(numbers.weight)
    weight[:, :8:2] = torch.tensor([64, 64, 64, 63], dtype=torch.int8)[:, None, None]
    weight[3, 6], weight[17, 6] = 64, 64
    weight[5], weight[6] = -weight[4], -weight[3]
    return replace(numbers, weight=weight, x=torch.zeros_like(numbers.x))


def _only_fours(target: Target) -> Target:
    """The target without chains of other lengths."""
    return replace(target, chains=tuple(c for c in target.chains if c.chain == 4))


AT_BOUNDS = pytest.mark.parametrize(
    ("target", "numbers"),
    [
        (X86_AVX2, _unsigned_at_the_bound),
        pytest.param(_only_fours(CORTEX_A53), _signed_at_the_bound, marks=pytest.mark.qemu),
        pytest.param(_only_fours(ARMV7_NEON), _signed_at_the_bound, marks=pytest.mark.qemu),
    ],
    ids=["avx2", "armv8", "armv7"],
)


def _wrong_accumulators(target: Target, n: Numbers) -> int:
    """How many accumulators of that layer differ from the reference."""
    case = AT_THE_BOUND
    problem = case.problem(target)
    problem = replace(problem, output=replace(problem.output, dtype="int32"))
    kernel = conv2d_accumulate_kernel(
        problem, weight=n.weight.numpy(), bias=n.bias.numpy(), target=target
    )
    assert kernel.name.endswith(tuple(idiom.name for idiom in target.chains))
    x = to_storage(n.x, problem.source, case.input_zero_point)
    result = run_kernel(kernel, target, x, abi=Abi.BARE)
    got = from_storage(result, problem.output, case.output_shape)
    expected = reference.conv2d_accumulate(n.x, n.weight, n.bias, **case.window())
    return int((got != expected).sum())


@AT_BOUNDS
def test_weights_beyond_the_bound_are_extra_steps(
    target: Target, numbers: Callable[[], Numbers]
) -> None:
    assert _wrong_accumulators(target, numbers()) == 0
    kernel = check(AT_THE_BOUND, target, numbers())
    assert "_rest" in kernel.name


@AT_BOUNDS
def test_a_bound_off_by_one_is_noticed(
    target: Target, numbers: Callable[[], Numbers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more code than int16 holds saturates, or wraps around."""

    class Wrong:
        max, min = 32767 + 255, -32768 - 255

    monkeypatch.setattr(conv_rest, "INT16", Wrong)
    assert _wrong_accumulators(target, numbers()) > 0


def test_many_offending_weights_fall_back_to_wide_products() -> None:
    case = next(c for c in CASES if c.name == "odd")
    kernel = check(case, X86_AVX2, make_numbers(case))  # a third of the codes are extreme
    assert kernel.name.endswith("__pmaddwd_s16_256")


def test_chain_is_no_longer_than_a_kernel_position() -> None:
    """Four stored channels are one step a position: longer chains would never fill."""
    case, numbers = _seven_bits(next(c for c in CASES if c.name == "stem"))
    assert _name(case, numbers).endswith("__pmaddubsw_256_x1")


def test_extra_steps_cost_more_where_weights_are_streamed() -> None:
    """One pixel reads large weights once: their traffic is the limit, and extra steps add to it."""

    def chain_wins(vectors: int) -> bool:
        chained, *_ = plan_tiles(idioms.PMADDUBSW_256[-1], 1, 1, vectors, 320, rest=0.02)
        return chained.cycles < plan_tiles(idioms.PMADDWD_256, 1, 1, vectors, 640)[0].cycles

    assert chain_wins(8) and not chain_wins(128)


def _name(case: Case, n: Numbers) -> str:
    """Name of the kernel on AVX2."""
    kernel = conv_kernel(case, X86_AVX2, n)
    return kernel.name


def test_512_bit_chains_use_their_instruction() -> None:
    case, n = _seven_bits(CASES[0])
    kernel = conv_kernel(case, X86_AVX512, n)
    assembly = compile_bare(kernel, X86_AVX512).inspect_source("asm")
    lines = [line for line in assembly.splitlines() if "vpmaddubsw" in line]
    assert lines and all("zmm" in line for line in lines)


def test_target_with_a_foreign_chain_is_an_error() -> None:
    with pytest.raises(TargetError, match="cannot use"):
        replace(X86_AVX2, chains=idioms.PMADDUBSW_512)
