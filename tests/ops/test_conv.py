"""conv2d, conv_transpose2d and linear on integers against float64 torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import NumericsError
from fxquant.ops.conv import conv2d, conv_transpose2d, linear
from fxquant.ops.opdef import Operand
from tests.ops.harness import (
    bias_on_grid,
    check,
    check_float_output,
    grid_for,
    real_weight,
    run_integer,
    value,
    weight,
)
from tests.tolerance import assert_close

# stride, padding (top, bottom, left, right), dilation, groups, C, O, kernel
CASES = {
    "plain": ((1, 1), (0, 0, 0, 0), (1, 1), 1, 3, 5, (3, 3)),
    "same": ((1, 1), (1, 1, 1, 1), (1, 1), 1, 4, 17, (3, 3)),
    "strided": ((2, 3), (1, 1, 2, 2), (1, 1), 1, 5, 4, (3, 5)),
    "asymmetric": ((2, 2), (0, 1, 1, 0), (1, 1), 1, 3, 3, (3, 3)),
    "dilated": ((1, 1), (2, 2, 3, 3), (2, 3), 1, 2, 4, (3, 3)),
    "grouped": ((1, 2), (1, 1, 1, 1), (1, 1), 3, 6, 9, (3, 3)),
    "depthwise": ((2, 1), (2, 2, 2, 2), (1, 2), 7, 7, 7, (5, 3)),
    "multiplied": ((1, 1), (1, 1, 1, 1), (1, 1), 5, 5, 10, (3, 3)),
    "pointwise": ((1, 1), (0, 0, 0, 0), (1, 1), 1, 33, 15, (1, 1)),
    "one_channel": ((1, 1), (0, 0, 0, 0), (1, 1), 1, 1, 1, (1, 1)),
    "whole_plane": ((1, 1), (0, 0, 0, 0), (1, 1), 1, 3, 4, (9, 11)),
}


def conv_case(name: str):
    stride, padding, dilation, groups, c, o, kernel = CASES[name]
    kwargs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return kwargs, value((2, c, 9, 11)), weight((o, c // groups, *kernel))


def expected_conv(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, kwargs: dict):
    top, bottom, left, right = kwargs["padding"]
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, bias, kwargs["stride"], 0, kwargs["dilation"], kwargs["groups"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("zero_point", [0, 117, 255])
def test_conv2d(name: str, zero_point: int) -> None:
    kwargs, _, w = conv_case(name)
    x = value((2, CASES[name][4], 9, 11), zero_point=zero_point)
    bias = bias_on_grid(x, w, 3.0)
    expected = expected_conv(x.real, real_weight(w), bias, kwargs)
    check(conv2d, {"x": x}, expected, weight=w, bias=bias, **kwargs)
    check_float_output(conv2d, {"x": x}, expected, weight=w, bias=bias, **kwargs)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("activation_bits", [2, 4, 8])
def test_conv2d_widths(bits: int, activation_bits: int) -> None:
    kwargs, _, _ = conv_case("same")
    x = value((2, 4, 9, 11), bits=activation_bits, zero_point=1)
    w = weight((17, 4, 3, 3), bits=bits)
    expected = expected_conv(x.real, real_weight(w), None, kwargs)
    check(conv2d, {"x": x}, expected, bits=activation_bits, weight=w, **kwargs)


@pytest.mark.parametrize("clamp", [(0.0, None), (0.0, 6.0), (-1.0, 2.5), (None, 0.5), (1.0, 3.0)])
def test_conv2d_clamp(clamp) -> None:
    """A fused clamp bounds the codes like the clamp in float, on a grid that is wider."""
    kwargs, x, w = conv_case("strided")
    plain = expected_conv(x.real, real_weight(w), None, kwargs)
    grid, expected = grid_for(plain), plain.clamp(*clamp)
    check(conv2d, {"x": x}, expected, weight=w, grid=grid, clamp=clamp, **kwargs)
    check_float_output(conv2d, {"x": x}, expected, weight=w, clamp=clamp, **kwargs)


def test_clamp_outside_the_grid_is_harmless() -> None:
    """Bounds beyond the codes clip to them; a grid wholly outside gives its nearest code."""
    kwargs, x, w = conv_case("plain")
    grid = Operand(0.02, 100, 0, 255)
    plain = run_integer(conv2d, {"x": x}, grid, 4, w, **kwargs)
    wide = run_integer(conv2d, {"x": x}, grid, 4, w, clamp=(-1e9, 1e9), **kwargs)
    assert torch.equal(plain, wide)
    high = run_integer(conv2d, {"x": x}, grid, 4, w, clamp=(1e6, None), **kwargs)
    assert int(high.min()) == 255


@pytest.mark.parametrize("name", ["same", "strided", "pointwise"])
@pytest.mark.parametrize("clamp", [None, (0.0, None)])
def test_conv2d_residual(name: str, clamp) -> None:
    kwargs, x, w = conv_case(name)
    plain = expected_conv(x.real, real_weight(w), None, kwargs)
    residual = value(tuple(plain.shape), seed=7, zero_point=31, span=float(plain.abs().max()))
    total = plain + residual.real
    expected = total if clamp is None else total.clamp(*clamp)
    operands, grid = {"x": x, "residual": residual}, grid_for(total)
    check(conv2d, operands, expected, weight=w, fraction=0.08, grid=grid, clamp=clamp, **kwargs)


TRANSPOSED = {
    "doubling": (2, 1, 1, 1, 1, (3, 3)),
    "odd": ((3, 2), (0, 1), (1, 0), 1, 1, (2, 5)),
    "grouped": (2, 0, 0, 1, 2, (3, 2)),
    "dilated": (1, 2, 0, 2, 1, (3, 3)),
    "cropped": (2, 3, 0, 1, 1, (3, 3)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose2d(name: str) -> None:
    """Against torch's own transposed convolution, through the frontend's rewrite of the weight."""
    stride, padding, output_padding, dilation, groups, kernel = TRANSPOSED[name]
    x, w = value((2, 4, 5, 6)), weight((6, 4 // groups, *kernel))

    def both(v):
        return (v, v) if isinstance(v, int) else v

    (ph, pw), (oh, ow), (dh, dw) = both(padding), both(output_padding), both(dilation)
    top, left = dh * (kernel[0] - 1) - ph, dw * (kernel[1] - 1) - pw
    kwargs = {
        "stride": both(stride),
        "padding": (top, top + oh, left, left + ow),
        "dilation": (dh, dw),
        "groups": groups,
    }
    original = (
        real_weight(w)
        .reshape(groups, 6 // groups, 4 // groups, *kernel)
        .transpose(1, 2)
        .flip(3, 4)
        .reshape(4, 6 // groups, *kernel)
    )
    expected = F.conv_transpose2d(
        x.real, original, None, stride, padding, output_padding, groups, dilation
    )
    check(conv_transpose2d, {"x": x}, expected, weight=w, **kwargs)
    check_float_output(conv_transpose2d, {"x": x}, expected, weight=w, **kwargs)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 5, 33), (4, 256)])
@pytest.mark.parametrize("outputs", [1, 5, 16])
def test_linear(shape: tuple[int, ...], outputs: int) -> None:
    x, w = value(shape, zero_point=3), weight((outputs, shape[-1]))
    bias = bias_on_grid(x, w, 1.0)
    expected = F.linear(x.real, real_weight(w), bias)
    check(linear, {"x": x}, expected, weight=w, bias=bias)
    check_float_output(linear, {"x": x}, expected, weight=w, bias=bias)


def test_scales_too_far_apart_are_refused_by_name() -> None:
    kwargs, x, w = conv_case("plain")
    for scale in (1e-12, 1e12):
        with pytest.raises(NumericsError, match="op"):
            run_integer(conv2d, {"x": x}, Operand(scale, 0, 0, 255), 4, w, **kwargs)


@pytest.mark.parametrize("channels", [3, 12, 16])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0)])
def test_weights_of_strided_pointwise_layers_get_their_gradient(
    channels: int, padding: tuple[int, int, int, int]
) -> None:
    """oneDNN writes outside of its buffers where channels-last values have few channels."""
    arguments = {"stride": (2, 2), "padding": padding, "dilation": (1, 1), "groups": 1}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, channels, 14, 14, generator=generator)
    weight = torch.randn(5, channels, 1, 1, generator=generator)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        """The result and the gradient of the weight."""
        w = weight.to(x.dtype).requires_grad_()
        y = conv2d(x, w, **arguments)
        return y.detach(), torch.autograd.grad(y.square().sum(), w)[0]

    exact = run(x.double())
    for _ in range(20):  # a damaged heap shows sooner or later
        found = run(x.contiguous(memory_format=torch.channels_last))
        for actual, expected in zip(found, exact, strict=True):
            assert_close(actual.double(), expected, 1e-4)
