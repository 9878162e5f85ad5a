"""Weight scales, the floor under them, and bias correction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.numerics.types import QParams, activation_spec, weight_spec
from fxquant.numerics.width import WIDTH_8
from fxquant.ops.clamp import Clamp, apply_clamp
from fxquant.ops.conv import conv2d
from fxquant.solvers import BiasCorrection, LayerProblem, RoundToNearest
from fxquant.solvers.round_to_nearest import mean_shift
from fxquant.solvers.scale_search import floor_scale, max_scale, round_to_grid, search_scale
from tests.graphs import fused, ops_of, signal_to_noise
from tests.solvers.layers import make_layer

W = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def grid(scale: float) -> QParams:
    return QParams(activation_spec(8), torch.tensor(scale), torch.tensor(0, dtype=torch.int32))


def error(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Squared rounding error of every channel."""
    rounded = round_to_grid(weight, scale, weight_spec(bits)).dequantize()
    return (rounded - weight).double().square().flatten(1).sum(1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_max_scale_clips_nothing(bits: int) -> None:
    spec = weight_spec(bits)
    scale = max_scale(W, spec)
    codes = round_to_grid(W, scale, spec).codes
    assert int(codes.abs().max()) == spec.dtype.qmax
    assert bool(((W.double() / scale.reshape(-1, 1, 1, 1)).abs() <= spec.dtype.qmax + 1e-6).all())


@pytest.mark.parametrize("bits", range(2, 9))
def test_search_is_never_worse_than_max(bits: int) -> None:
    spec = weight_spec(bits)
    searched = error(W, search_scale(W, spec), bits)
    covering = error(W, max_scale(W, spec), bits)
    assert bool((searched <= covering * (1 + 1e-5)).all())
    if bits <= 4:
        assert float(searched.sum()) < 0.95 * float(covering.sum())


def test_rounding_is_to_the_nearest_code() -> None:
    scale = max_scale(W, weight_spec(8))
    step = round_to_grid(W, scale, weight_spec(8)).qparams.scale.reshape(-1, 1, 1, 1)
    difference = (round_to_grid(W, scale, weight_spec(8)).dequantize() - W).abs()
    assert bool((difference <= 0.5 * step * (1 + 1e-4)).all())


def test_floor_keeps_bias_and_multiplier_in_range() -> None:
    scale = torch.tensor([0.0, 1e-40, 1e-20, 0.01], dtype=torch.float64)
    bias = torch.tensor([0.0, 100.0, -1.0, 1.0])
    raised, count = floor_scale(scale, bias, grid(0.02), grid(0.05))
    assert count == 3 and raised[3] == 0.01
    assert bool(((bias.double().abs() / (raised * 0.02)) < 2**29).all())
    assert bool((raised * 0.02 / 0.05 >= WIDTH_8.smallest_multiplier).all())
    QParams(weight_spec(8), raised.float(), torch.zeros(4, dtype=torch.int32))


def test_raised_scales_are_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
    quantized = fxquant.quantize(model, [torch.randn(4, 3, 5, 5)], progress=False)
    assert "1 channel(s) raised" in quantized.notes["_0"]
    assert "raised" in str(quantized)


def depthwise_chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 8, 1)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("bits", [4, 8])
def test_bias_correction_removes_the_mean_error(bits: int) -> None:
    """Of the last layer, on the calibration data: what the equations promise."""
    model, x = depthwise_chain(), torch.randn(16, 3, 12, 12)
    config = fxquant.Config(default=fxquant.OpConfig(bits, 8))

    def mean_error(correct: bool) -> float:
        solver = (RoundToNearest(), BiasCorrection()) if correct else RoundToNearest()
        quantized = fxquant.quantize(model, [x], config=config, solver=solver, progress=False)
        with torch.no_grad():
            return float((quantized(x) - model(x)).mean((0, 2, 3)).abs().max())

    assert mean_error(True) < 0.1 * mean_error(False)


def test_corrected_bias_lies_on_the_int32_grid() -> None:
    """Solver, simulator and integers use the same bias: the rounded one."""
    x = torch.randn(4, 3, 12, 12)
    quantized = fxquant.quantize(depthwise_chain(), [x], progress=False)
    gm = quantized.integer
    assert ops_of(fused(depthwise_chain(), x)).count("conv2d") == 7
    for name, tensor in gm.named_buffers():
        if tensor.dtype == torch.int32:
            assert int(tensor.abs().max()) < 2**29, name


def test_shared_module_gets_one_weight_and_own_biases() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    x = torch.randn(8, 3, 9, 9)
    quantized = fxquant.quantize(model, [x], progress=False)
    weights = {tuple(t.shape) for t in quantized.integer.buffers() if t.dtype == torch.int8}
    assert (3, 3, 3, 3) in weights
    stored = [n for n, t in quantized.calibrated.named_buffers() if t.shape == (3, 3, 3, 3)]
    assert len(stored) == 1
    with torch.no_grad():
        assert float((quantized.reference(x) - model(x)).abs().max()) < 0.05


def test_default_recipe_at_8_bits() -> None:
    x = torch.randn(4, 3, 12, 12)
    steps = fxquant.solvers.ActivationEqualization(), fxquant.solvers.GPTQ()
    a = fxquant.quantize(depthwise_chain(), [x], progress=False)
    b = fxquant.quantize(depthwise_chain(), [x], solver=steps, progress=False)
    assert torch.equal(a.reference(x), b.reference(x))
    assert F.mse_loss(a(x), depthwise_chain()(x)).item() < 1e-3


@pytest.mark.parametrize("clamp", [(0.0, None), (0.0, 1.5), None])
def test_shift_matches_means_behind_the_clamp(clamp: Clamp | None) -> None:
    torch.manual_seed(0)
    layer = make_layer(conv2d, torch.randn(4, 3, 3, 3), bits=2, clamp=clamp)
    x = torch.randn(6, 3, 7, 5)
    problem = LayerProblem(layer, [(x,)], [(x.clamp(-1, 1),)])
    y = layer.run((x,), layer.weight, layer.bias)
    y_q = layer.run((x.clamp(-1, 1),), layer.start.dequantize(), layer.bias)
    low, high = clamp or (None, None)
    low, high = -torch.inf if low is None else low, torch.inf if high is None else high
    inside = ((y >= low) & (y <= high)) | ((y_q >= low) & (y_q <= high))
    expected = (apply_clamp(y.clone(), clamp) - apply_clamp(y_q.clone(), clamp)).sum((0, 2, 3))
    shift = mean_shift(problem, layer.start)
    torch.testing.assert_close(shift, expected / inside.sum((0, 2, 3)))
    before = mean_shift(problem, layer.start, behind_clamp=False)
    torch.testing.assert_close(before, (y - y_q).mean((0, 2, 3)))
    assert torch.allclose(before, shift) == (clamp is None)


def test_errors_that_no_layer_sees_shift_nothing() -> None:
    """Clipped inputs that move results far below zero."""
    layer = make_layer(conv2d, -torch.ones(1, 1, 1, 1), clamp=(0.0, None))
    x = torch.tensor([100.0, 50.0, -1.0, -2.0]).reshape(4, 1, 1, 1)
    problem = LayerProblem(layer, [(x,)], [(x.clamp(max=10),)])
    rounded = float(layer.start.dequantize())
    y, y_q = (w * torch.tensor([-1.0, -2.0]) + layer.bias for w in (-1.0, rounded))
    assert float(mean_shift(problem, layer.start)) == pytest.approx(float((y - y_q).mean()))
    assert float(mean_shift(problem, layer.start, behind_clamp=False)) < -20


def test_narrow_layers_gain_by_means_behind_the_clamp() -> None:
    model, x = depthwise_chain(), torch.randn(16, 3, 12, 12)
    config = fxquant.Config(default=fxquant.OpConfig(3, 4))

    def quality(behind_clamp: bool) -> float:
        solver = (RoundToNearest(), BiasCorrection(behind_clamp))
        quantized = fxquant.quantize(model, [x], config=config, solver=solver, progress=False)
        return signal_to_noise(model(x).detach(), quantized(x))

    assert quality(True) > quality(False)
