"""Pooling and resize kernels equal their reference operators."""

from __future__ import annotations

import pytest
import torch

from fxquant import targets
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.emit_harness import HALO, check, codes, each_target
from tests.backend.integer_nets import windows
from tvm_backend.emit.windows import Run, runs
from tvm_backend.kernel import Abi

GRID = {"zero_point": 77, "output_zero_point": 9, "qmin": 0, "qmax": 255}
ADAPTIVE = ((0, 2, 1), (1, 4, 1), (2, 5, 1), (4, 7, 1))
DILATED = ((0, 5, 2), (1, 6, 2), (4, 7, 2))


def test_runs_of_a_strided_pool() -> None:
    found = runs(windows(112, 3, 2, 1))
    assert found == (Run(0, 1, 0, 0, 2, 1), Run(1, 55, 1, 2, 3, 1))
    assert [r.tap(i, 0) for r in found for i in range(r.count)][:4] == [0, 1, 3, 5]


@each_target
@pytest.mark.parametrize("channels", [3, 16, 33])
def test_max_pool2d(target: Target, channels: int) -> None:
    x = codes(1, 2, channels, 7, 9)
    for rows, cols in (
        (windows(7, 3, 2, 1), windows(9, 3, 2, 1)),
        (ADAPTIVE, ADAPTIVE),
        (DILATED, windows(9, 2, 2, 0)),
        (((0, 7, 1),), ((0, 9, 1),)),
        (((0, 7, 1),), ((0, 9, 1), (0, 9, 1))),  # too many taps to unroll
    ):
        check(reference.max_pool2d, target, [x], {"rows": rows, "cols": cols}, halo=HALO)


@pytest.mark.parametrize("abi", Abi)
def test_max_pool2d_of_floats(abi: Abi) -> None:
    x = torch.randn(2, 3, 7, 7)
    x[0, 1], x[1, 2] = -torch.inf, -x[1, 2].abs()
    for windows_of_axis in (windows(7, 3, 2, 1), ADAPTIVE, DILATED, ((0, 7, 1),)):
        numbers = {"rows": windows_of_axis, "cols": windows_of_axis}
        check(reference.max_pool2d, targets.X86_AVX2, [x], numbers, abi=abi)


@each_target
def test_avg_pool2d_with_every_shift(target: Target) -> None:
    shifts = torch.arange(-14, 25, dtype=torch.int8)
    generator = torch.Generator().manual_seed(0)
    multipliers = torch.randint(1 << 14, 1 << 15, (1, len(shifts)), generator=generator)
    tensors = {"multiplier": multipliers.to(torch.int16), "shift": shifts.reshape(1, -1)}
    for height in (1, 4, 200):  # 200: sums beyond int16 before a left shift
        x = codes(1, 1, 17, height, len(shifts))
        cols = tuple((i, i + 1, 1) for i in range(len(shifts)))
        numbers = {"rows": ((0, height, 1),), "cols": cols, **GRID}
        check(reference.avg_pool2d, target, [x], numbers, tensors, halo=HALO)


@each_target
@pytest.mark.parametrize("shift", [-14, -1, 0, 3])
def test_global_avg_pool2d(target: Target, shift: int) -> None:
    tensors = {
        "multiplier": torch.full((1, 1), 21000, dtype=torch.int16),
        "shift": torch.full((1, 1), shift, dtype=torch.int8),
    }
    for channels in (1, 16, 33, 80):
        x = codes(channels, 2, channels, 7, 13)
        numbers = {"rows": ((0, 7, 1),), "cols": ((0, 13, 1),), **GRID}
        check(reference.avg_pool2d, target, [x], numbers, tensors)


@pytest.mark.parametrize("abi", Abi)
def test_avg_pool2d_accumulate(abi: Abi) -> None:
    x = codes(1, 2, 33, 7, 9)
    numbers = {"rows": windows(7, 3, 2, 1), "cols": windows(9, 3, 2, 1), "zero_point": 128}
    for target in (targets.X86_VNNI, targets.X86_AVX2):
        check(reference.avg_pool2d_accumulate, target, [x], numbers, abi=abi)


@each_target
def test_resize_linear2d(target: Target) -> None:
    rows = ((0, 1, 512), (1, 1, 0), (3, 6, 1023))
    cols = ((0, 1, 512), (1, 1, 0), (3, 6, 1023), (7, 8, 1024))
    numbers = {"rows": rows, "cols": cols, "zero_point": 5, "qmin": 0, "qmax": 255}
    for channels in (3, 33):
        x = codes(1, 2, channels, 7, 9)
        check(reference.resize_linear2d, target, [x], numbers, halo=HALO)
