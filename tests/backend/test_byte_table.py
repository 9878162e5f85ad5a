"""Tables read with byte shuffles: every code in every lane, for vectors of each width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant import targets
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.emit_harness import check, codes, each_target
from tvm_backend.emit import byte_table
from tvm_backend.emit.byte_table import X86, Aarch64, Scalar

TABLES = (
    torch.arange(256).to(torch.uint8),
    torch.arange(255, -1, -1).to(torch.uint8),
    *(codes(seed, 256) for seed in range(3)),
)


def every_code_in_every_lane(pixels: int) -> torch.Tensor:
    """Rows of `16 * pixels` consecutive elements, each element with another code in every row."""
    first, row = torch.arange(16 * pixels).reshape(1, 1, pixels, 16), torch.arange(256)
    return ((first + row.reshape(1, -1, 1, 1)) % 256).to(torch.uint8).permute(0, 3, 1, 2)


@each_target
@pytest.mark.parametrize("pixels", [1, 2, 3, 7, 15])
def test_every_code_in_every_lane(target: Target, pixels: int) -> None:
    """15 pixels: vectors of 64 bytes in pairs and alone, then of 32 and of 16."""
    for table in TABLES:
        check(reference.lookup, target, [every_code_in_every_lane(pixels)], {}, {"table": table})


def test_the_reader_of_a_target() -> None:
    assert isinstance(byte_table.byte_table(targets.GENERIC), Scalar)
    assert isinstance(byte_table.byte_table(targets.CORTEX_A53), Aarch64)
    assert byte_table.byte_table(targets.X86_AVX2).lanes == (32, 16)
    assert byte_table.byte_table(targets.X86_VNNI).lanes == (64, 32, 16)


def test_differences_add_up_to_the_table() -> None:
    table = codes(4, 256).numpy()
    slices = X86(64).constant(table).reshape(2, 8, 4, 16)
    assert (slices == slices[:, :, :1]).all()
    total = np.bitwise_xor.accumulate(slices[:, :, 0], axis=1)
    assert (total.reshape(-1) == table).all()


def shuffle_bytes(part: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`pshufb` as the manual has it: 16 bytes for themselves, 0 where bit 7 of the index is set."""
    rows = index.reshape(-1, 16)
    read = np.take_along_axis(part.reshape(-1, 16), (rows & 15).astype(np.int64), 1)
    return np.where(rows & 128, 0, read).reshape(-1)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([16, 32, 64]), st.binary(min_size=256, max_size=256))
def test_model_of_the_kernel(lanes: int, entries: bytes) -> None:
    """Every code in every lane, also of vectors that the host may lack."""
    table = np.frombuffer(entries, np.uint8)
    halves = X86(lanes).constant(table).reshape(2, 8, lanes)
    index = (np.arange(256)[:, None] + np.arange(lanes)).reshape(-1).astype(np.uint8)
    low, high = (
        np.bitwise_xor.reduce(
            [shuffle_bytes(np.tile(part, 256), (index & 127) - 16 * k) for k, part in steps]
        )
        for steps in map(enumerate, halves)
    )
    assert (np.where(index & 128, high, low) == table[index]).all()


@pytest.mark.parametrize("slices_of_half", [4, 16])
def test_other_halves_are_found(monkeypatch: pytest.MonkeyPatch, slices_of_half: int) -> None:
    """A planted fault: differences that restart at other places than the kernel expects."""

    def constant(reader: X86, table: np.ndarray) -> np.ndarray:
        slices = table.reshape(-1, slices_of_half, 1, 16).copy()
        slices[:, 1:] ^= slices[:, :-1]
        return np.repeat(slices, reader.lanes[0] // 16, 2).reshape(-1)

    monkeypatch.setattr(X86, "constant", constant)
    with pytest.raises(AssertionError, match="differs"):
        check(
            reference.lookup, targets.X86_AVX2, [every_code_in_every_lane(2)], {},
            {"table": TABLES[2]},
        )  # fmt: skip
