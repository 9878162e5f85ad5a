"""Streamed weights: the next block is asked for, all of it, and only where it helps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxquant.targets import X86_AVX2, X86_VNNI, Target, idioms
from tests.backend.conv_cases import Case, check, conv_kernel, make_numbers
from tests.backend.kernel_harness import compile_bare
from tvm_backend.emit.conv_prefetch import is_streamed, share
from tvm_backend.kernel import Abi
from tvm_backend.layout import image
from tvm_backend.schedule.tiles import Tile

LARGE = Case("large", 512, 160, 3, 5)  # 737 kB of weights
SMALL = Case("small", 32, 160, 3, 5)


@pytest.mark.parametrize("tiles", [2, 3, 4, 7, 14, 49])
@pytest.mark.parametrize("lines", [1, 2, 5, 8, 16])
def test_the_shares_of_all_tiles_are_the_whole_block(tiles: int, lines: int) -> None:
    asked = set()
    for index in range(tiles):
        first, count = share(index, tiles, lines)
        asked.update(range(first, first + count))
    assert asked == set(range(lines))


def test_weights_are_streamed_if_large_and_visited_block_by_block() -> None:
    output, tile, large = image((1, 512, 7, 7), "uint8"), Tile(2, 7, 2, pixels_first=False), 1 << 21
    vnni = idioms.VPDPBUSD_512
    assert is_streamed(vnni, tile, output, large)
    assert not is_streamed(vnni, tile, output, 1 << 15)
    assert not is_streamed(idioms.SDOT, tile, output, large)
    assert not is_streamed(vnni, tile.reordered, output, large)
    assert not is_streamed(vnni, replace(tile, th=7), output, large)  # one tile has nobody to ask


@pytest.mark.parametrize(
    ("case", "target", "expected"),
    [(LARGE, X86_VNNI, True), (SMALL, X86_VNNI, False), (LARGE, X86_AVX2, False)],
    ids=str,
)
def test_kernels_ask_for_streamed_weights(case: Case, target: Target, expected: bool) -> None:
    n = make_numbers(case)
    kernel = conv_kernel(case, target, n)
    assembly = compile_bare(kernel, target).inspect_source("asm")
    assert ("\tprefetcht1\t" in assembly) == expected


def test_a_streaming_kernel_equals_the_reference() -> None:
    """Guard pages behind every buffer: asking beyond the weights does no harm."""
    check(LARGE, X86_VNNI, make_numbers(LARGE), abi=Abi.BARE)
