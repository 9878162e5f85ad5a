"""Depthwise layers tap by tap equal the reference, at every chain, tile and geometry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxquant.errors import TargetError
from fxquant.targets import ARMV7_NEON, CORTEX_A53, CORTEX_A76, Target, idioms
from tests.backend.conv_cases import RESIDUAL, Case, Numbers, check, conv_kernel, make_numbers
from tests.backend.kernel_harness import largest_loop
from tvm_backend.emit import depthwise_taps
from tvm_backend.emit.conv import conv2d_accumulate_kernel
from tvm_backend.macs import mac_of
from tvm_backend.schedule.tiles import tap_tiles

TARGETS = pytest.mark.parametrize(
    "target",
    [pytest.param(target, marks=pytest.mark.qemu) for target in (CORTEX_A53, ARMV7_NEON)],
    ids=str,
)
PLAIN = Case("plain", 24, 24, 5, 11, groups=24, output_halo=(1, 1, 1, 1), n=2)
CASES = (
    PLAIN,
    Case("strided", 40, 40, 9, 16, stride=(2, 2), groups=40),
    Case("wide", 17, 17, 9, 11, (5, 5), (1, 2), (2, 2, 2, 2), groups=17),
    Case("row", 16, 16, 4, 9, (1, 7), (1, 1), (0, 0, 3, 3), groups=16),
    Case("dilated", 31, 31, 9, 9, (3, 3), (1, 2), (2, 2, 2, 2), (2, 2), 31, residual=True,
         clip=(1, 254)),
    Case("single", 8, 8, 3, 3, padding=(0, 0, 0, 0), groups=8),
)  # fmt: skip


def numbers_of(case: Case, largest: int) -> Numbers:
    return make_numbers(case, weight_limit=largest)


def idiom_of(kernel_name: str) -> str:
    return kernel_name.partition("__")[2]


@TARGETS
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("largest", "bits"), [(127, 8), (63, 7), (7, 4)], ids=str)
def test_taps_equal_the_reference(target: Target, case: Case, largest: int, bits: int) -> None:
    qmax = (1 << bits) - 1
    case = replace(case, input_qmax=qmax, input_zero_point=min(case.input_zero_point, qmax))
    residual = RESIDUAL if case.residual else None
    kernel = check(case, target, numbers_of(case, largest), residual=residual)
    by_taps = idiom_of(kernel.name) in {idiom.name for idiom in target.taps}
    assert by_taps == (case.kernel[0] * case.kernel[1] <= target.mac.registers)


@TARGETS
@pytest.mark.parametrize("tile", tap_tiles(idioms.SMLAL_SADDW[-1], (3, 3), 11), ids=str)
def test_every_tile_gives_the_same_result(target: Target, tile) -> None:
    kernel = check(PLAIN, target, numbers_of(PLAIN, 127), tile=tile)
    by_taps = {idiom.name for idiom in target.taps}
    assert f"_{tile}_" in kernel.name and idiom_of(kernel.name) in by_taps


@pytest.mark.qemu
@pytest.mark.parametrize("idiom", idioms.SMLAL_SADDW, ids=lambda idiom: idiom.name)
def test_every_chain_that_fits_is_taken(idiom) -> None:
    """Nine taps whose largest chain reaches -2^15, 256 times -128, and the same with one more."""
    longest = min(idiom.chain, 9)
    case = replace(PLAIN, input_zero_point=128)
    numbers = numbers_of(case, 20)
    weight = torch.zeros_like(numbers.weight)
    columns = weight.view(24, 3, 3).swapaxes(1, 2)  # taps in the order of the products
    every = torch.full((9,), min(256 // longest, 127))
    every[0] += 256 % longest
    columns[5] = every.view(3, 3).to(torch.int8)
    fitting = replace(numbers, weight=weight, x=torch.zeros_like(numbers.x))
    kernel = check(case, CORTEX_A53, fitting)
    chains = {-(-9 // i.chain) for i in idioms.SMLAL_SADDW if i.chain <= idiom.chain}
    assert -(-9 // int(idiom_of(kernel.name).rpartition("_x")[2])) == min(chains)
    weight[5, 0, 0, 0] += 1
    beyond = check(case, CORTEX_A53, replace(fitting, weight=weight))
    if longest > 2:
        assert beyond.name != kernel.name


@pytest.mark.qemu
def test_a_bound_off_by_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a chain that does not fit wraps around."""
    case = replace(PLAIN, input_zero_point=128)
    numbers = numbers_of(case, 20)
    weight = torch.zeros_like(numbers.weight)
    weight[5] = 29  # 9 * 29 = 261 > 256
    wrong = replace(numbers, weight=weight, x=torch.zeros_like(numbers.x))
    check(case, CORTEX_A53, wrong)
    monkeypatch.setattr(depthwise_taps, "chain_is_exact", lambda *_: True)
    with pytest.raises(AssertionError, match="differ"):
        check(case, CORTEX_A53, wrong)


def test_nothing_is_interleaved_and_weights_stay_in_registers() -> None:
    case = Case("loop", 64, 64, 28, 28, groups=64)
    kernel = conv_kernel(case, CORTEX_A53, numbers_of(case, 127))
    loop = largest_loop(kernel, CORTEX_A53, "smlal").splitlines()
    names = [line.split()[0] for line in loop if line.startswith("\t")]
    products = sum(name in ("smull", "smlal") for name in names)
    assert products == 9 * 7 and not {"zip1", "zip2"} & set(names)
    assert sum("[sp" in line for line in loop) <= 8


def test_accumulators_and_other_targets_go_by_rows() -> None:
    """A stage that finishes single vectors cannot take pairs; dot products need no chains."""
    n = numbers_of(PLAIN, 63)
    problem = PLAIN.problem(CORTEX_A53)
    problem = replace(problem, output=replace(problem.output, dtype="int32", halo=(0, 0, 0, 0)))
    kernel = conv2d_accumulate_kernel(
        problem, weight=n.weight.numpy(), bias=n.bias.numpy(), target=CORTEX_A53
    )
    assert "sadalp" in idiom_of(kernel.name)
    assert idiom_of(conv_kernel(PLAIN, CORTEX_A76, n).name) == "sdot"


def test_many_taps_go_by_rows() -> None:
    """Their weights do not fit the registers; tap by tap is still among the schedules."""
    case = Case("large", 16, 16, 9, 9, (7, 7), padding=(3, 3, 3, 3), groups=16)
    kernel = conv_kernel(case, CORTEX_A53, numbers_of(case, 63))
    assert "sadalp" in idiom_of(kernel.name)
    assert any("saddw" in name for name in kernel.variants.by_name())  # type: ignore[union-attr]


def test_a_target_with_foreign_taps_is_an_error() -> None:
    with pytest.raises(TargetError, match="cannot use"):
        replace(CORTEX_A53, taps=idioms.SMLAL_SADALP)
    with pytest.raises(TargetError, match="cannot use"):
        replace(CORTEX_A76, taps=(replace(idioms.SMLAL_SADDW[0], chain=0),))


def test_accumulators_are_two_vectors_of_the_output_stage() -> None:
    for idiom in (*idioms.SMLAL_SADDW, *idioms.VMLAL_VADDW):
        assert mac_of(idiom).idiom.lanes == 2 * CORTEX_A53.mac.lanes
