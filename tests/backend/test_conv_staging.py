"""Kernels that widen a block of their input first equal the reference, and are taken where due."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    GENERIC,
    X86_AVX2,
    X86_AVX512,
    X86_VNNI,
    X86_ZEN1,
    Target,
)
from tests.backend import kernel_harness
from tests.backend.conv_cases import CASES, RESIDUAL, Case, check, conv_kernel, make_numbers
from tvm_backend.emit import conv, conv_staging
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_staging import Staging
from tvm_backend.kernel import Abi
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE
from tvm_backend.macs import staged_macs_of
from tvm_backend.schedule.tiles import Tile

DENSE = [case for case in CASES if not case.problem(X86_AVX2).depthwise]
SHAPES = [
    Case("under_a_vector", 15, 7, 3, 5, (1, 1), padding=(0, 0, 0, 0), input_zero_point=255),
    Case("over_a_vector", 17, 9, 13, 7, (1, 1), padding=(0, 0, 0, 0), output_halo=(1, 0, 2, 1)),
    Case("rows_3x3", 16, 33, 13, 9, input_zero_point=0, residual=True),
    Case("rows_5x1", 8, 24, 11, 6, (5, 1), (2, 1), (2, 2, 0, 0), n=2),
    Case("used_pixels", 33, 40, 9, 10, (1, 1), (2, 3), (0, 0, 0, 0), n=2, extra_halo=1),
    Case("used_pixels_of_halo", 5, 16, 4, 5, (1, 1), (3, 2), (2, 0, 1, 1)),
    Case("stem_3x3", 3, 32, 13, 14, (3, 3), (2, 2), multiple=INPUT_CHANNEL_MULTIPLE),
    Case("matrix", 40, 31, 1, 67, (1, 1), padding=(0, 0, 0, 0)),
]  # fmt: skip


class Signed(Case):
    """A case whose input is stored as int8."""

    def problem(self, *arguments, **keywords) -> ConvProblem:
        problem = super().problem(*arguments, **keywords)
        return replace(problem, source=replace(problem.source, dtype="int8"))


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else may multiply."""
    monkeypatch.setattr(conv, "conv_macs", lambda _p, _w, _b, target: staged_macs_of(target))


def _check(case: Case, tile: Tile | None = None, abi: Abi = Abi.PACKED) -> None:
    residual = RESIDUAL if case.residual else None
    kernel = check(case, X86_AVX2, make_numbers(case), residual=residual, abi=abi, tile=tile)
    assert kernel.name.endswith("__pmaddwd_s16_256")


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize("abi", Abi, ids=lambda abi: abi.value)
@pytest.mark.parametrize("case", [*DENSE, *SHAPES], ids=str)
def test_equals_reference(case: Case, abi: Abi) -> None:
    """BARE has guard pages behind every buffer."""
    _check(case, abi=abi)


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize("name", ["rows_3x3", "rows_5x1", "used_pixels", "stem_3x3", "matrix"])
@pytest.mark.parametrize("limit", [1 << 9, 1 << 12])
def test_small_blocks_equal_reference(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a few rows or of a few columns, with remainders; tiles that leave remainders."""
    monkeypatch.setattr(conv_staging, "STAGED_BYTES", limit)
    monkeypatch.setattr(kernel_harness, "_functions", {})  # the limit is not part of the name
    case = next(case for case in SHAPES if case.name == name)
    for tile in (Tile(2, 3, 2, pixels_first=True), Tile(1, 4, 1, pixels_first=False)):
        _check(case, tile, Abi.BARE)


@pytest.mark.usefixtures("staged")
@pytest.mark.parametrize("outputs", [8, 24, 48, 80])
def test_channels_of_few_blocks_are_spread(outputs: int) -> None:
    """One staged block, so that threads share the 1 to 10 blocks of channels, evenly or not."""
    _check(Case("spread", 8, outputs, 4, 6), Tile(1, 6, 1, pixels_first=True))


@pytest.mark.usefixtures("staged")
def test_signed_activations_equal_reference() -> None:
    _check(Signed(**asdict(SHAPES[2])))


@pytest.mark.usefixtures("staged")
def test_a_row_less_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the last row of every block is what memory happens to hold."""
    fill = conv_staging._Block.fill

    def short(block: conv_staging._Block, source: object) -> None:
        rows = block.down
        block.down = replace(rows, count=rows.count - 1)
        fill(block, source)
        block.down = rows

    monkeypatch.setattr(conv_staging._Block, "fill", short)
    monkeypatch.setattr(kernel_harness, "_functions", {})
    with pytest.raises(AssertionError, match="differ"):
        _check(SHAPES[1])


def _idiom(case: Case, target: Target, weight_limit: int = 128) -> str:
    n = make_numbers(case, weight_limit=weight_limit)
    kernel = conv_kernel(case, target, n, winograd=False)
    return kernel.name.rpartition("__")[2]


def test_choice() -> None:
    """Wide codes are staged where widening would be repeated and nothing is better.

    Not with codes for int16 chains, a single pixel, depthwise layers, or dot products.
    """
    wide = Case("choice", 64, 128, 14, 14, (1, 1), padding=(0, 0, 0, 0))
    assert _idiom(wide, X86_AVX2) == "pmaddwd_s16_256"
    assert _idiom(replace(wide, kernel=(3, 3)), X86_AVX512) == "pmaddwd_s16_512"
    assert _idiom(wide, X86_AVX2, weight_limit=63) == "pmaddubsw_256_x1"
    assert _idiom(wide, X86_ZEN1, weight_limit=63) == "pmaddwd_s16_256"
    assert _idiom(replace(wide, h=1, w=1), X86_AVX2) == "pmaddwd_256"
    depthwise = Case("choice_depthwise", 32, 32, 14, 14, groups=32)
    assert _idiom(depthwise, X86_AVX2) == "pmaddwd_256"
    for target in (X86_VNNI, GENERIC, CORTEX_A53, ARMV7_NEON):
        assert _idiom(wide, target).startswith(target.mac.name)


def test_blocks_fit_the_stack_or_are_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Case("large", 512, 64, 14, 14)
    problem = large.problem(X86_AVX2)
    staging = Staging(problem, Tile(2, 3, 2, pixels_first=True))
    assert staging.fits and 2 * staging.size <= conv_staging.STAGED_BYTES
    assert _idiom(large, X86_AVX2) == "pmaddwd_s16_256"
    monkeypatch.setattr(conv_staging, "STAGED_BYTES", 1 << 9)
    assert not Staging(problem, Tile(1, 1, 1, pixels_first=True)).fits
    assert _idiom(large, X86_AVX2) == "pmaddwd_256"
