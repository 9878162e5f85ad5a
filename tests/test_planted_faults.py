"""Planted faults: single facts of the arithmetic made wrong must turn a named check red.

Each row breaks one thing and calls the very check that the ordinary tests call. The same check
passes without the fault, so the fault is what it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import pytest
import torch
from torch import Tensor

from fxquant.numerics import reference
from fxquant.numerics.requantize import Requant, scale_accumulator, to_codes
from fxquant.numerics.width import WIDTH_8, WIDTH_16, Width
from fxquant.ops import conv, qdq
from fxquant.ops.opdef import Operand
from fxquant.passes import fuse
from tests.graphs import check_frontend, quantize_model
from tests.numerics.test_quantize import test_quantize_ties_go_to_even as check_ties_to_even
from tests.numerics.test_requantize import check_rounding_error, check_ties
from tests.ops.test_conv import test_conv2d as check_conv
from tests.ops.test_conv import test_conv2d_clamp as check_clamp
from tests.ops.test_conv import test_conv2d_residual as check_residual
from tests.ops.test_conv import test_linear as check_linear
from tests.ops.test_elementwise import test_add_and_mul as check_add_and_mul
from tests.ops.test_elementwise import test_concat as check_concat
from tests.ops.test_pool import test_adaptive_avg_pool as check_avg_pool
from tests.ops.test_wide import test_linear_beyond_int32 as check_wide_linear
from tests.passes.test_lowering import check_budget
from tests.wide_nets import CONFIGS
from tests.zoo import BY_NAME

Patch = Callable[[pytest.MonkeyPatch], None]


def without_half(acc: Tensor, multiplier, shift, width: Width = WIDTH_8) -> Tensor:
    """scale_accumulator without its first rounding half."""
    shift = torch.as_tensor(shift, dtype=torch.int64)
    shifted = (acc << (-shift).clamp(min=0)) >> shift.clamp(min=0)
    t = shifted.clamp(width.word_min, width.word_max)
    half = 1 << (width.multiplier_bits - 1)
    return (t * torch.as_tensor(multiplier, dtype=torch.int64) + half) >> width.multiplier_bits


def truncated(
    scaled: Tensor, zero_point: int, qmin: int, qmax: int, width: Width = WIDTH_8
) -> Tensor:
    """to_codes without its rounding half."""
    codes = (scaled + (zero_point << width.fraction_bits)) >> width.fraction_bits
    return codes.clamp(qmin, qmax).to(width.codes)


@pytest.mark.parametrize("width", [WIDTH_8, WIDTH_16], ids=lambda w: f"u{w.bits}")
def test_dropped_rounding_half_of_the_shift(width: Width) -> None:
    check_ties(width=width)
    with pytest.raises(AssertionError):
        check_ties(without_half, width)


@pytest.mark.parametrize("width", [WIDTH_8, WIDTH_16], ids=lambda w: f"u{w.bits}")
def test_dropped_rounding_half_of_the_code(width: Width) -> None:
    check_rounding_error(width=width)
    with pytest.raises(AssertionError):
        check_rounding_error(scale_accumulator, truncated, width)


def changed(function: Callable[..., Tensor], **changes: Callable) -> Callable[..., Tensor]:
    """The function with some keyword arguments replaced by a function of their value."""

    @wraps(function)
    def wrong(*args, **kwargs):
        return function(*args, **{k: changes[k](v) if k in changes else v
                                  for k, v in kwargs.items()})  # fmt: skip

    return wrong


def on_conv(**changes: Callable) -> Patch:
    return lambda m: m.setattr(reference, "conv2d", changed(reference.conv2d, **changes))


def transpose_kernel(m: pytest.MonkeyPatch) -> None:
    right = reference.conv2d
    m.setattr(reference, "conv2d", lambda x, w, *a, **k: right(x, w.transpose(2, 3), *a, **k))


def transpose_matrix(m: pytest.MonkeyPatch) -> None:
    right = reference.linear
    m.setattr(reference, "linear", lambda x, w, *a, **k: right(
        x, w.t().reshape(w.shape), *a, **k))  # fmt: skip


def roll_channels(m: pytest.MonkeyPatch) -> None:
    right = reference.conv2d
    m.setattr(reference, "conv2d", lambda x, w, b, mul, *a, **k: right(
        x, w, b, mul.roll(1), *a, **k))  # fmt: skip


def drop_bias(m: pytest.MonkeyPatch) -> None:
    right = reference.conv2d
    m.setattr(reference, "conv2d", lambda x, w, b, *a, **k: right(x, w, b * 0, *a, **k))


def ignore_clamp(m: pytest.MonkeyPatch) -> None:
    m.setattr(Operand, "clip", lambda self, clamp: (self.qmin, self.qmax))


def swap_operands(m: pytest.MonkeyPatch) -> None:
    right = reference.add
    m.setattr(reference, "add", changed(right, zero_points=lambda z: z[::-1]))


def check_wide() -> None:
    """A 16-bit network beside 8-bit values, per operator."""
    entry, config = CONFIGS["8-bit layers between 16-bit ones"]
    check_budget(entry, quantize_model(entry.make(), entry.inputs(), config))


def narrow_multiplier(m: pytest.MonkeyPatch) -> None:
    """Results of 16 bits from multipliers with 15 significant bits only."""
    right = conv.requant_from_real

    def coarse(real: Tensor, where: str = "", width: Width = WIDTH_8) -> Requant:
        requant = right(real, where, width)
        kept = requant.multiplier >> (width.multiplier_bits - 15)
        return Requant(kept << (width.multiplier_bits - 15), requant.shift, width)

    m.setattr(conv, "requant_from_real", coarse)


def wrap_accumulators(m: pytest.MonkeyPatch) -> None:
    """Accumulators of 16-bit codes in int32."""
    right = reference.linear_accumulate

    @wraps(right)
    def wrapped(*args, **kwargs):
        return right(*args, **kwargs).to(torch.int32).to(torch.int64)

    m.setattr(reference, "linear_accumulate", wrapped)


def drop_low_byte(m: pytest.MonkeyPatch) -> None:
    """Tables of 65,536 codes read as if the index had 8 bits."""
    right = reference.lookup

    @wraps(right)
    def coarse(x: Tensor, table: Tensor) -> Tensor:
        return right(x.to(torch.int64) & -256 if table.shape[-1] > 256 else x, table)

    m.setattr(reference, "lookup", coarse)


def assert_frontend(name: str) -> None:
    check_frontend(BY_NAME[name].make(), BY_NAME[name].inputs())


# name: (fault, check that must find it)
FAULTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "kernel_axes_transposed": (transpose_kernel, lambda: check_conv("same", 117)),
    "matrix_transposed": (transpose_matrix, lambda: check_linear((4, 256), 16)),
    "channel_multipliers_rolled": (roll_channels, lambda: check_conv("plain", 117)),
    "bias_dropped": (drop_bias, lambda: check_conv("plain", 117)),
    "input_zero_point_sign": (
        on_conv(input_zero_point=lambda z: -z), lambda: check_conv("plain", 117)),
    "output_zero_point_off_by_one": (
        on_conv(output_zero_point=lambda z: z + 1), lambda: check_conv("plain", 117)),
    "padding_sides_swapped": (
        on_conv(padding=lambda p: (p[1], p[0], p[3], p[2])), lambda: check_conv("asymmetric", 117)),
    "clamp_ignored": (ignore_clamp, lambda: check_clamp((-1.0, 2.5))),
    "residual_shift_off_by_one": (
        on_conv(residual_shift=lambda s: s + 1), lambda: check_residual("same", None)),
    "residual_zero_point_sign": (
        on_conv(residual_zero_point=lambda z: -z), lambda: check_residual("same", (0.0, None))),
    "zero_points_swapped": (
        swap_operands, lambda: check_add_and_mul(((3, 17), (3, 17)), None)),
    "concat_on_one_grid": (
        lambda m: m.setattr(reference, "concat", changed(
            reference.concat, multipliers=lambda v: v[:1] * len(v))),
        lambda: check_concat(1)),
    "pool_zero_point": (
        lambda m: m.setattr(
            reference, "avg_pool2d", changed(reference.avg_pool2d, zero_point=lambda z: z + 1)),
        lambda: check_avg_pool((7, 7), (2, 3), 128)),
    "qdq_rounds_half_up": (
        lambda m: m.setattr(qdq._RoundClip, "forward", staticmethod(
            lambda ctx, x, low, high: torch.floor(x + 0.5).clamp(low, high))),
        lambda: check_ties_to_even(qdq.quantize)),
    "batch_norm_without_offset": (
        lambda m: m.setattr(fuse, "_batch_norm_affine", lambda gm, node, f=fuse._batch_norm_affine:
                            (f(gm, node)[0], f(gm, node)[1] * 0)),
        lambda: assert_frontend("residual")),
    "wide_multiplier_too_narrow": (narrow_multiplier, check_wide),
    "wide_accumulator_wraps": (wrap_accumulators, check_wide_linear),
    "wide_table_read_by_the_high_byte": (drop_low_byte, check_wide),
    "integer_graph_shift": (
        lambda m: m.setattr(reference, "linear_accumulate", changed(
            reference.linear_accumulate, input_zero_point=lambda z: z + 1)),
        lambda: check_budget(BY_NAME["mlp"], quantize_model(
            BY_NAME["mlp"].make(), BY_NAME["mlp"].inputs()))),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, check = FAULTS[name]
    check()
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(AssertionError):
            check()
    check()


def test_faulty_helpers_differ_from_the_definition() -> None:
    """The planted faults are faults: they change codes."""
    acc = torch.arange(-1000, 1000)
    assert not torch.equal(without_half(acc, 20001, 3), scale_accumulator(acc, 20001, 3))
    assert not torch.equal(truncated(acc, 3, 0, 255), to_codes(acc, 3, 0, 255))
