"""Convolutions to test kernels with, and the comparison with the reference operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fxquant.numerics import reference
from fxquant.numerics.width import width_of
from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    CORTEX_A76,
    GENERIC,
    NEOVERSE_V1,
    X86_AMX,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_VNNI,
    Target,
)
from tests.backend.kernel_harness import (
    assert_halo,
    from_storage,
    run_kernel,
    to_storage,
)
from tvm_backend.emit.conv import Schedule, conv2d_kernel
from tvm_backend.emit.conv_plane import plane_of
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_winograd import winograd_layer
from tvm_backend.emit.epilogue import Residual
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE, image
from tvm_backend.schedule.winograd import WinogradPlan, plan_winograd
from tvm_backend.winograd import Winograd

HOST = [X86_VNNI, X86_AMX, X86_AVX512, X86_AVX_VNNI, X86_AVX2, GENERIC]
ARM = [CORTEX_A53, CORTEX_A76, NEOVERSE_V1, ARMV7_NEON]
BOTH = [
    *HOST,
    *(pytest.param(t, marks=pytest.mark.qemu) for t in (CORTEX_A53, ARMV7_NEON)),
    *(
        pytest.param(t, marks=[pytest.mark.qemu, pytest.mark.slow])
        for t in (CORTEX_A76, NEOVERSE_V1)
    ),
]


def stored(target: Target, bits: int) -> str:
    """Storage type of codes."""
    return target.mac.storage if bits == 8 else "int16"


@dataclass(frozen=True)
class Case:
    """A convolution; sizes in torch's words."""

    name: str
    c: int
    o: int
    h: int
    w: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    n: int = 1
    residual: bool = False
    clip: tuple[int, int] = (0, 255)
    extra_halo: int = 0
    output_halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    multiple: int = 16
    input_zero_point: int = 3
    output_zero_point: int = 120
    bits: int = 8  # of the input
    width: int = 8  # of the result
    residual_bits: int = 8
    input_qmax: int = 0  # 0: what the bits allow

    def __str__(self) -> str:
        return self.name

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        top, bottom, left, right = self.padding
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        oh = (self.h + top + bottom - reach[0]) // self.stride[0] + 1
        ow = (self.w + left + right - reach[1]) // self.stride[1] + 1
        return self.n, self.o, oh, ow

    def problem(self, target: Target, residual: Residual | None = None) -> ConvProblem:
        top, bottom, left, right = (max(p, 0) + self.extra_halo for p in self.padding)
        source = image(
            (self.n, self.c, self.h, self.w), stored(target, self.bits),
            (top, bottom, left, right), self.multiple,
        )  # fmt: skip
        output = image(self.output_shape, stored(target, self.width), self.output_halo)
        return ConvProblem(
            source, output, self.kernel, self.stride, self.padding, self.dilation, self.groups,
            self.input_zero_point, self.output_zero_point, *self.clip, residual,
            min(self.largest_input, 255),
        )  # fmt: skip

    @property
    def largest_input(self) -> int:
        return self.input_qmax or (1 << self.bits) - 1

    def window(self) -> dict:
        return {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation,
            "groups": self.groups, "input_zero_point": self.input_zero_point,
        }  # fmt: skip

    def grid(self) -> dict:
        return {
            "output_zero_point": self.output_zero_point,
            "qmin": self.clip[0], "qmax": self.clip[1], "width": self.width,
        }  # fmt: skip


CASES = [
    Case("plain", 16, 64, 6, 14),
    Case("odd", 17, 33, 5, 7, n=2, output_halo=(1, 2, 0, 3)),
    Case("one_channel", 1, 1, 4, 5, output_halo=(1, 1, 1, 1)),
    Case("pointwise", 31, 15, 3, 5, kernel=(1, 1), padding=(0, 0, 0, 0), n=3),
    Case("wide_block", 5, 80, 3, 3, kernel=(1, 1), padding=(0, 0, 0, 0), clip=(120, 200)),
    Case("strided_dilated", 15, 48, 9, 11, (3, 2), (2, 3), (2, 1, 0, 1), (2, 3), extra_halo=1),
    Case("stem", 3, 31, 13, 15, (7, 7), (2, 2), (3, 3, 3, 3), multiple=INPUT_CHANNEL_MULTIPLE),
    Case("small_channels", 8, 33, 5, 9, extra_halo=1),
    Case("crop", 4, 16, 7, 8, padding=(-1, 1, 1, -2)),
    Case("residual", 33, 96, 4, 5, residual=True, n=2, output_halo=(0, 1, 1, 0)),
    Case("grouped", 24, 40, 5, 7, groups=4, n=2),
    Case("grouped_odd", 9, 15, 4, 5, groups=3, residual=True),
    Case("group_width_8", 64, 64, 5, 6, groups=8, output_halo=(1, 1, 1, 1)),
    Case("depthwise", 112, 112, 5, 9, groups=112, output_halo=(1, 1, 1, 1), n=2),
    Case("depthwise_odd", 31, 31, 6, 5, groups=31, residual=True, clip=(1, 254)),
    Case("depthwise_5x5", 17, 17, 9, 11, (5, 5), (2, 2), (2, 2, 2, 2), groups=17),
    Case("depthwise_dilated", 4, 4, 9, 8, (3, 3), (1, 2), (2, 2, 2, 2), (2, 2), 4),
    Case("depthwise_input", 3, 3, 6, 7, groups=3, multiple=INPUT_CHANNEL_MULTIPLE),
    Case("depthwise_multiplier", 5, 10, 6, 7, groups=5),
]


def winograd_cases(cases: list[Case], few: tuple[str, ...]) -> list:
    """`(target, case)`: one target with every case; the others with those that differ most."""
    product = [(X86_AVX2, case) for case in cases]
    others = (GENERIC, X86_VNNI, X86_AVX_VNNI, CORTEX_A53, ARMV7_NEON)
    product += [(target, case) for target in others for case in cases if case.name in few]
    return [
        pytest.param(t, c, marks=[pytest.mark.qemu] if t.emulator else [], id=f"{t}-{c}")
        for t, c in product
    ]


def winograd_plan(case: Case, target: Target, size: Winograd) -> WinogradPlan:
    """The cost model's blocking of a case for a size of tiles."""
    plane = plane_of(case.problem(target))
    assert plane is not None and plane.window == size.window
    return plan_winograd(winograd_layer(plane, target), size)


def extreme(generator: torch.Generator, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    """Random integers, every third one a bound."""
    values = torch.randint(low, high + 1, shape, generator=generator)
    pick = torch.randint(0, 6, shape, generator=generator)
    values = torch.where(pick == 0, torch.tensor(low), values)
    return torch.where(pick == 1, torch.tensor(high), values)


@dataclass(frozen=True)
class Numbers:
    """Operands of a case."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    shift: Tensor
    residual: Tensor


def make_numbers(case: Case, seed: int = 0, weight_limit: int = 128) -> Numbers:
    """Operands whose results spread over, and beyond, the code range."""
    g = torch.Generator().manual_seed(seed)
    source, result = width_of(case.bits), width_of(case.width)
    x = extreme(g, 0, case.largest_input, (case.n, case.c, case.h, case.w)).to(source.codes)
    shape = (case.o, case.c // case.groups, *case.kernel)
    weight = extreme(g, -weight_limit, min(weight_limit, 127), shape).to(torch.int8)
    bias = torch.randint(-20000, 20001, (case.o,), generator=g, dtype=source.accumulator)
    acc = reference.conv2d_accumulate(x, weight, bias, **case.window())
    largest = acc.abs().amax((0, 2, 3)).clamp(min=1).double()
    wanted = (
        torch.log2(largest).floor()
        - (2 * case.width - 4)
        + torch.randint(-3, 3, (case.o,), generator=g)
    )
    top = 1 << result.multiplier_bits
    multiplier = torch.randint(top // 2, top, (case.o,), generator=g).to(result.multiplier)
    shift = wanted.clamp(result.min_shift, result.max_shift).to(torch.int8)
    residual = extreme(g, 0, (1 << case.residual_bits) - 1, case.output_shape)
    return Numbers(
        x, weight, bias, multiplier, shift, residual.to(width_of(case.residual_bits).codes)
    )


RESIDUAL = {"residual_zero_point": 7, "residual_multiplier": 20000, "residual_shift": -5}


def conv_kernel(
    case: Case, target: Target, numbers: Numbers, residual: Residual | None = None, **options: Any
) -> Kernel:
    """The kernel of a case; options as of `conv2d_kernel`."""
    n = numbers
    return conv2d_kernel(
        case.problem(target, residual), weight=n.weight.numpy(), bias=n.bias.numpy(),
        multiplier=n.multiplier.numpy(), shift=n.shift.numpy(), target=target, **options,
    )  # fmt: skip


def check(
    case: Case,
    target: Target,
    numbers: Numbers,
    *,
    residual: dict | None = None,
    abi: Abi = Abi.PACKED,
    tile: Schedule | None = None,
    variant: int | None = None,
) -> Kernel:
    """Run the kernel of a case and compare every code and the halo with the reference.

    Args:
        case: The convolution.
        target: Device.
        numbers: Operands.
        residual: Arguments of the residual.
        abi: Calling convention.
        tile: Register tile, or blocking of a kernel of another kind.
        variant: Position of a schedule among the kernel's, to take instead of the default.
    """
    second = None
    if residual:
        storage = image(case.output_shape, stored(target, case.residual_bits), (0, 1, 2, 0))
        second = Residual(storage, *residual.values())
    problem = case.problem(target, second)
    n = numbers
    kernel = conv_kernel(case, target, n, second, tile=tile, winograd=False)
    if variant is not None:
        assert kernel.variants is not None
        ranked = kernel.variants.ranked()
        kernel = kernel.scheduled(ranked[variant % len(ranked)])
    arrays = [to_storage(n.x, problem.source, case.input_zero_point)]
    if second:
        arrays.append(to_storage(n.residual, second.image, second.zero_point))
    result = run_kernel(kernel, target, *arrays, abi=abi)
    expected = reference.conv2d(
        n.x, n.weight, n.bias, n.multiplier, n.shift, n.residual if residual else None,
        **case.window(), **case.grid(), **(residual or {}),
    )  # fmt: skip
    got = from_storage(result, problem.output, case.output_shape)
    assert_equal(got, expected, kernel)
    assert_halo(result, problem.output, case.output_zero_point)
    return kernel


def assert_equal(got: Tensor, expected: Tensor, kernel: Kernel) -> None:
    wrong = (got != expected).nonzero()
    assert len(wrong) == 0, (
        f"{kernel.name}: {len(wrong)} of {expected.numel()} differ, first at {wrong[0].tolist()}: "
        f"{got[tuple(wrong[0])]} instead of {expected[tuple(wrong[0])]}"
    )
