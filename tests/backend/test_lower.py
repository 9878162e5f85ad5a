"""Lowering: storage, views, constants, order, and the errors of what cannot be compiled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import fxquant
import tvm_backend
from fxquant import targets
from fxquant.errors import StageError, UnsupportedError
from fxquant.numerics import reference
from tests.backend.integer_nets import NetBuilder, residual_net
from tvm_backend.layout import Flat, Image
from tvm_backend.lower import lower
from tvm_backend.program import Step

TARGET = targets.X86_VNNI


def test_storage_of_a_residual_net() -> None:
    graph, _ = residual_net()
    program = lower(graph, TARGET)
    quantized, pooled = program.values["quantize"], program.values["max_pool2d"]
    assert quantized.image.channels == 4  # the network input
    assert quantized.image.halo == (1, 1, 1, 1) and quantized.fill == 110
    assert pooled.image.channels == 16
    assert pooled.image.halo == (1, 1, 1, 1) and pooled.fill == 31
    assert isinstance(program.values["dequantize_accumulator"].storage, Flat)
    signed = lower(graph, targets.CORTEX_A76).values["quantize"]
    assert signed.storage.dtype == "int8" and signed.fill == 110 - 128


def test_flattening_a_pixel_is_a_view() -> None:
    graph, _ = residual_net()
    program = lower(graph, TARGET)
    assert "reshape" not in [step.node for step in program.steps if isinstance(step, Step)]
    assert "reshape" not in program.values


def test_halo_is_the_largest_padding() -> None:
    net = NetBuilder()
    q = net.quantize(net.input())
    a = net.conv2d(q, (3, 8), 5, (110, 20), padding=2)
    b = net.conv2d(q, (3, 8), 3, (110, 20), padding=1)
    x = torch.randn(1, 3, 9, 9)
    graph = net.finish((net.dequantize(a, 20), net.dequantize(b, 20)), x)
    assert lower(graph, TARGET).values["quantize"].image.halo == (2, 2, 2, 2)


def test_readers_must_agree_on_the_zero_point() -> None:
    net = NetBuilder()
    q = net.quantize(net.input())
    a = net.conv2d(q, (3, 8), 3, (110, 20), padding=1)
    b = net.conv2d(q, (3, 8), 3, (111, 20), padding=1)
    graph = net.finish((net.dequantize(a, 20), net.dequantize(b, 20)), torch.randn(1, 3, 9, 9))
    with pytest.raises(StageError, match="disagree"):
        lower(graph, TARGET)


def test_every_refused_node_is_listed() -> None:
    net = NetBuilder()
    q = net.quantize(net.input())
    first = net.call(torch.add, q, 1)  # codes without dequantize
    second = net.call(torch.bitwise_not, q)
    graph = net.finish((first, second), torch.randn(1, 3, 4, 4))
    with pytest.raises(UnsupportedError) as error:
        lower(graph, TARGET)
    assert "add" in str(error.value) and "bitwise_not" in str(error.value)


def test_inputs_of_unsupported_type_are_refused() -> None:
    net = NetBuilder()
    graph = net.finish(net.quantize(net.input()), torch.randn(1, 3, 4, 4).double())
    with pytest.raises(UnsupportedError, match="float64"):
        lower(graph, TARGET)


def test_constants_are_folded_and_packed() -> None:
    net = NetBuilder()
    q = net.quantize(net.input())
    constant = net.tensor(torch.randn(1, 17, 4, 5))
    codes = net.call(reference.quantize, constant, scale=0.02, zero_point=7, qmin=0, qmax=255)
    grid = {"output_zero_point": 9, "qmin": 0, "qmax": 255}
    total = net.call(reference.add, q, codes, zero_points=(110, 7), multipliers=(20000, 20000),
                     shifts=(-6, -6), **grid)  # fmt: skip
    x = torch.randn(1, 17, 4, 5)
    graph = net.finish(net.dequantize(total, 9), x)
    program = lower(graph, TARGET)
    assert [step.node for step in program.steps if isinstance(step, Step)] == [
        "quantize", "add", "dequantize",
    ]  # fmt: skip
    assert torch.equal(tvm_backend.compile(graph)(x), graph(x))


def test_integer_inputs_and_outputs() -> None:
    net = NetBuilder()
    codes = net.input()
    b = net.conv2d(codes, (3, 17), 3, (110, 20), padding=1)
    whole = ((0, 6, 1),)
    sums = net.call(reference.avg_pool2d_accumulate, b, rows=whole, cols=whole, zero_point=20)
    x = net.ints(0, 255, (2, 3, 6, 6), torch.uint8)
    graph = net.finish({"codes": b, "rest": [sums, codes]}, x)
    compiled = tvm_backend.compile(graph)
    result, expected = compiled(x), graph(x)
    assert result["codes"].dtype == torch.uint8
    assert torch.equal(result["codes"], expected["codes"])
    assert all(map(torch.equal, result["rest"], expected["rest"]))


def test_images_are_images() -> None:
    graph, _ = residual_net()
    program = lower(graph, TARGET)
    values = [v for v in program.values.values() if v.storage.dtype == "uint8"]
    assert all(isinstance(value.storage, Image) for value in values)


def test_layers_of_one_shape_share_a_kernel() -> None:
    """Whatever their weights, scales and zero points; another shape is another kernel."""
    layers = [torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
    net = torch.nn.Sequential(*layers, torch.nn.Conv2d(16, 24, 3, padding=1)).eval()
    quantized = fxquant.quantize(net, [torch.randn(4, 16, 6, 6)], progress=False)
    program = lower(quantized.integer, TARGET)
    kernels = [s.kernel for s in program.steps if isinstance(s, Step) and "conv2d" in s.kernel.name]
    assert len(kernels) == 5 and len({kernel.name for kernel in kernels[:4]}) == 1
    assert not any((a.constants[0] == b.constants[0]).all() for a, b in pairwise(kernels[:4]))
    assert sum("conv2d" in name for name in program.kernels) == 2
