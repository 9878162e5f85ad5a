"""Winograd kernels of other windows than 3x3: strides as planes of blocks, the stem of ResNets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fxquant.errors import UnsupportedError
from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    CORTEX_A55,
    NEOVERSE_V1,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_VNNI,
    X86_ZEN1,
    Target,
)
from tests.backend.conv_cases import (
    RESIDUAL,
    Case,
    check,
    conv_kernel,
    make_numbers,
    winograd_cases,
    winograd_plan,
)
from tvm_backend.emit.conv_plane import Plane, plane_of
from tvm_backend.kernel import Abi
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE
from tvm_backend.schedule.winograd import WinogradPlan
from tvm_backend.winograd import F2, F3, F4, SIZES

SMALL = {"stride": (2, 2), "multiple": INPUT_CHANNEL_MULTIPLE}
STEM = Case("stem", 3, 31, 14, 16, (7, 7), padding=(3, 3, 3, 3), **SMALL)
CASES = [
    STEM,
    replace(STEM, name="batch", n=3, o=72, output_halo=(1, 2, 0, 3), input_zero_point=255),
    replace(STEM, name="odd", h=13, w=15, extra_halo=1, residual=True),
    replace(STEM, name="no_padding", h=18, w=20, padding=(0, 0, 0, 0), clip=(120, 200)),
    replace(STEM, name="one_sided", padding=(0, 3, 2, 2), c=4),
    replace(STEM, name="crop", padding=(-1, 1, 1, -2), c=1, extra_halo=2),
    replace(STEM, name="one_pixel", h=2, w=2, o=16),
    replace(STEM, name="even_window", kernel=(8, 8), c=2),
    replace(STEM, name="5x5", kernel=(5, 5), padding=(2, 2, 2, 2)),
    replace(STEM, name="6x6", kernel=(6, 6), padding=(2, 2, 2, 2), o=64),
    Case("4x4", 17, 33, 7, 9, (4, 4), padding=(2, 1, 2, 1), output_halo=(1, 1, 1, 1)),
]


def _plans(case: Case, target: Target) -> list[WinogradPlan]:
    plane = plane_of(case.problem(target))
    assert plane is not None
    sizes = [size for size in SIZES if size.window == plane.window]
    return [winograd_plan(case, target, size) for size in sizes]


@pytest.mark.parametrize(("target", "case"), winograd_cases(CASES, ("stem", "4x4")))
def test_kernels_equal_reference(target: Target, case: Case) -> None:
    """With guard pages behind every buffer, the workspace included."""
    residual = RESIDUAL if case.residual else None
    plans = _plans(case, target)
    assert plans
    for plan in plans:
        numbers = make_numbers(case, weight_limit=127)
        kernel = check(case, target, numbers, residual=residual, abi=Abi.BARE, tile=plan)
        assert "winograd" in kernel.name


def test_windows_have_sizes() -> None:
    for case in CASES:
        sizes = [plan.size for plan in _plans(case, X86_AVX2)]
        assert sizes == ([F2, F4] if case.kernel[0] in (5, 6) else [F3])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 4, 5, 7, 8])
def test_blocks_compute_the_same_convolution(stride: int, kernel: int) -> None:
    """Weights of the plane on pixels rearranged by torch, against the strided convolution."""
    case = Case("plane", 3, 5, 16, 18, (kernel,) * 2, (stride,) * 2, (0,) * 4, multiple=4)
    plane = Plane(case.problem(X86_AVX2))
    g = torch.Generator().manual_seed(kernel)
    x = torch.randint(0, 256, (2, 3, 16, 18), generator=g).double()
    w = torch.randint(-127, 128, (5, 3, kernel, kernel), generator=g)
    blocks = torch.nn.functional.pixel_unshuffle(x, stride)  # [N, C * s * s, H / s, W / s]
    by_pixel = blocks.unflatten(1, (3, stride**2)).transpose(1, 2).flatten(1, 2)
    weights = plane.weights(w.numpy().astype(np.int8))
    assert weights.shape == (5, plane.depth, plane.window, plane.window)
    got = torch.nn.functional.conv2d(by_pixel, torch.from_numpy(weights).double())
    expected = torch.nn.functional.conv2d(x, w.double(), stride=stride)
    h, w_ = (min(a, b) for a, b in zip(got.shape[2:], expected.shape[2:], strict=True))
    assert h > 3 and torch.equal(got[..., :h, :w_], expected[..., :h, :w_])


def test_convolutions_without_a_plane() -> None:
    """Among them the one whose last block of columns would begin in one row and end in the next."""
    for changes in (
        {"h": 13, "w": 15}, {"multiple": 16}, {"stride": (2, 1)}, {"stride": (3, 3)},
        {"kernel": (7, 5)}, {"dilation": (2, 2), "padding": (6, 6, 6, 6)}, {"groups": 3, "o": 3},
        {"bits": 16},
    ):  # fmt: skip
        assert plane_of(replace(STEM, **changes).problem(X86_AVX2)) is None
    rows = replace(STEM, h=13)
    assert plane_of(rows.problem(X86_AVX2)) is not None  # the last row may repeat
    check(rows, X86_AVX2, make_numbers(rows), abi=Abi.BARE, tile=_plans(rows, X86_AVX2)[0])


def test_a_size_of_another_window_is_an_error() -> None:
    plan = replace(_plans(STEM, X86_AVX2)[0], size=F4)
    with pytest.raises(UnsupportedError, match=r"(?s)F\(4x4, 3x3\).*windows") as error:
        check(STEM, X86_AVX2, make_numbers(STEM), tile=plan)
    assert "direct kernel" in str(error.value)


@pytest.mark.parametrize("fault", ["pixels", "rows", "tap"])
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used, weights, corners = Plane._used, Plane.weights, Plane.corners
    match fault:
        case "pixels":
            monkeypatch.setattr(Plane, "_used", lambda self: used(self)[::-1])
        case "rows":
            swapped = lambda *a: [[at[::-1] for at in row] for row in corners(*a)]  # noqa: E731
            monkeypatch.setattr(Plane, "corners", swapped)
        case "tap":
            shifted = lambda self, w: weights(self, np.roll(w, 1, -1))  # noqa: E731
            monkeypatch.setattr(Plane, "weights", shifted)
    plan = replace(_plans(STEM, X86_AVX2)[0], tiles=len(fault))  # a kernel name of its own
    with pytest.raises(AssertionError, match="differ"):
        check(STEM, X86_AVX2, make_numbers(STEM), tile=plan)


def test_the_cost_model_chooses() -> None:
    """Dot products of bytes are faster than filtering three channels."""
    stem = Case("resnet", 3, 64, 224, 224, (7, 7), padding=(3, 3, 3, 3), **SMALL)
    numbers = make_numbers(replace(stem, h=8, w=8), weight_limit=80)
    for target in (X86_AVX2, X86_ZEN1, X86_AVX512, CORTEX_A53, ARMV7_NEON):
        assert "_f3b" in conv_kernel(stem, target, numbers).name, target
    for target in (X86_VNNI, X86_AVX_VNNI, CORTEX_A55, NEOVERSE_V1):
        assert "winograd" not in conv_kernel(stem, target, numbers).name, target
