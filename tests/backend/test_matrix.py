"""Idioms that multiply matrices: several pixels a step; compared with the reference under qemu."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fxquant.errors import TargetError
from fxquant.numerics import reference
from fxquant.targets import ALL, NEOVERSE_V1, Target, idioms
from tests.backend.conv_cases import RESIDUAL, Case, assert_equal, check, conv_kernel, make_numbers
from tests.backend.kernel_harness import from_storage, largest_loop, run_kernel, to_storage
from tvm_backend.emit.conv import conv2d_accumulate_kernel
from tvm_backend.emit.linear import linear_accumulate_kernel
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE, image
from tvm_backend.macs.pixels import pixel_groups
from tvm_backend.macs.usmmla import Usmmla
from tvm_backend.manifest import decode_target, encode_target
from tvm_backend.schedule.tiles import Tile, plan_tiles

CASES = [
    # An odd number of pixels in tiles and remainders; reductions of 1, 2, 3 and 4 steps.
    (Case("one_step", 8, 12, 3, 5, multiple=8), None),
    (Case("two_steps", 9, 16, 3, 4), Tile(1, 3, 1, True)),
    (Case("pointwise", 64, 48, 5, 5, (1, 1), (1, 1), (0, 0, 0, 0)), None),
    (Case("three_steps", 17, 33, 5, 7, n=2, output_halo=(1, 2, 0, 3)), Tile(1, 5, 3, True)),
    (Case("four_steps", 32, 20, 3, 3, input_zero_point=255), Tile(3, 1, 2, False)),
    (Case("single_pixels", 31, 28, 3, 3, input_zero_point=0), Tile(1, 1, 4, True)),
    (Case("rows", 16, 64, 7, 7, (3, 2), (2, 1), (2, 1, 0, 1), (1, 2)), Tile(2, 3, 3, True)),
    (Case("residual", 33, 48, 5, 5, residual=True, clip=(1, 254)), Tile(1, 4, 4, True)),
    (Case("odd_residual", 16, 18, 3, 7, residual=True, output_zero_point=0), None),
    # Kernel rows over pixels of 4 channels: 12 and 28 elements.
    (Case("stem_3x3", 3, 64, 8, 24, stride=(2, 2), multiple=4), None),
    (Case("stem_7x7", 3, 24, 12, 16, (7, 7), (2, 2), (3, 3, 3, 3), n=2, multiple=4), None),
    (Case("grouped", 48, 96, 5, 5, groups=3), None),
]


@pytest.mark.qemu
@pytest.mark.parametrize(("case", "tile"), CASES, ids=str)
def test_pixels_in_pairs_equal_reference(case: Case, tile: Tile | None) -> None:
    residual = RESIDUAL if case.residual else None
    kernel = check(case, NEOVERSE_V1, make_numbers(case), residual=residual, tile=tile)
    assert kernel.name.endswith("__usmmla")


@pytest.mark.qemu
def test_accumulators_of_pairs_equal_reference() -> None:
    case = Case("accumulators", 24, 10, 3, 3)
    n, problem = make_numbers(case), case.problem(NEOVERSE_V1)
    problem = replace(problem, output=replace(problem.output, dtype="int32"))
    kernel = conv2d_accumulate_kernel(
        problem, weight=n.weight.numpy(), bias=n.bias.numpy(), target=NEOVERSE_V1
    )
    assert kernel.name.endswith("__usmmla")
    result = run_kernel(kernel, NEOVERSE_V1, to_storage(n.x, problem.source, 3))
    expected = reference.conv2d_accumulate(n.x, n.weight, n.bias, **case.window())
    assert_equal(from_storage(result, problem.output, case.output_shape), expected, kernel)


@pytest.mark.qemu
@pytest.mark.parametrize(("rows", "idiom"), [(1, "usdot"), (2, "usmmla"), (3, "usmmla")])
def test_linear_takes_pairs_of_rows(rows: int, idiom: str) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (rows, 40), generator=g, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (24, 40), generator=g, dtype=torch.int8)
    bias = torch.randint(-999, 1000, (24,), generator=g, dtype=torch.int32)
    source, output = image((rows, 40), "uint8"), image((rows, 24), "int32")
    kernel = linear_accumulate_kernel(
        source, output, input_zero_point=77, weight=weight.numpy(), bias=bias.numpy(),
        target=NEOVERSE_V1,
    )  # fmt: skip
    assert kernel.name.endswith(f"__{idiom}")
    result = run_kernel(kernel, NEOVERSE_V1, to_storage(x, source))
    expected = reference.linear_accumulate(x, weight, bias, input_zero_point=77)
    assert_equal(from_storage(result, output, (rows, 24)), expected, kernel)


@pytest.mark.qemu
@pytest.mark.parametrize("fault", ["rows", "join"])
def test_exchanged_pixels_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    case = Case(f"exchanged_{fault}", 9, 17, 3, 3)  # other sizes than elsewhere: code is cached
    right = getattr(Usmmla, fault)

    def wrong(mac: Usmmla, value: Any) -> Any:
        return right(mac, value[::-1]) if fault == "join" else right(mac, value)[::-1]

    monkeypatch.setattr(Usmmla, fault, wrong)
    with pytest.raises(AssertionError, match="differ"):
        check(case, NEOVERSE_V1, make_numbers(case))


def _kernel(case: Case):
    n = make_numbers(case)
    return conv_kernel(case, NEOVERSE_V1, n)


@pytest.mark.parametrize(
    "case",
    [
        Case("end_of_memory", 3, 32, 9, 9, stride=(2, 2), multiple=INPUT_CHANNEL_MULTIPLE),
        Case("single", 32, 32, 1, 1),
        Case("depthwise", 32, 32, 5, 6, groups=32),
    ],
    ids=str,
)
def test_other_layers_keep_dot_products(case: Case) -> None:
    """A step beyond the last pixel, a single pixel, and layers without a common operand."""
    assert _kernel(case).name.endswith("__usdot")


def test_inner_loop_stays_in_registers() -> None:
    """The register tile of the cost model leaves room for the operands."""
    body = largest_loop(_kernel(Case("loop", 64, 64, 8, 8)), NEOVERSE_V1, "usmmla")
    assert body.count("\tusmmla\t") == 32  # 2 steps, 2 pairs of pixels, 4 vectors of 2 registers
    assert "[sp" not in body


def test_cost_of_an_odd_pixel() -> None:
    """A pixel without a partner costs as much as two."""
    costs = [plan_tiles(idioms.USMMLA, 1, cols, 4, 512)[0].cycles for cols in (3, 4)]
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


def test_groups_of_pixels() -> None:
    assert pixel_groups(range(5), idioms.USMMLA) == [range(0, 2), range(2, 4), range(4, 5)]
    assert [len(group) for group in pixel_groups(range(3), idioms.USDOT)] == [1, 1, 1]


@pytest.mark.parametrize("target", ALL, ids=str)
def test_targets_survive_a_manifest(target: Target) -> None:
    assert decode_target(encode_target(target)) == target


@pytest.mark.parametrize(
    "changes",
    [
        {"matrix": (idioms.SDOT,)},
        {"matrix": (idioms.USDOT,)},
        {"chains": (idioms.USMMLA,)},
        {"mac": idioms.SDOT},
    ],
    ids=str,
)
def test_target_with_a_foreign_matrix_is_an_error(changes: dict) -> None:
    with pytest.raises(TargetError, match="cannot use"):
        replace(NEOVERSE_V1, **{"matrix": (idioms.USMMLA,), **changes})
