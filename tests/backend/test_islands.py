"""Float islands: how they are cut, and that compiled ones compute what torch computes."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tvm_backend
from fxquant import targets
from fxquant.errors import UnsupportedError
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.integer_nets import NetBuilder, windows
from tvm_backend import float_island
from tvm_backend.lower import lower
from tvm_backend.program import Island

TOLERANCE = 1e-5


def islands(graph: torch.fx.GraphModule) -> list[Island]:
    program = lower(graph, targets.X86_VNNI)
    return [step for step in program.steps if isinstance(step, Island)]


def check(graph: torch.fx.GraphModule, x: torch.Tensor) -> None:
    result = tvm_backend.compile(graph)(x)
    assert torch.allclose(result, graph(x), rtol=TOLERANCE, atol=TOLERANCE)


def test_island_between_integer_layers() -> None:
    net = NetBuilder(3)
    x = torch.randn(2, 16, 6, 6)
    c = net.conv2d(net.quantize(net.input()), (16, 32), 3, (110, 60), padding=1)
    real = net.call(F.gelu, net.dequantize(c, 60))
    total = net.call(torch.add, net.call(torch.softmax, real, dim=1), real)
    d = net.conv2d(net.quantize(total, 50), (32, 16), 1, (50, 40))
    graph = net.finish(net.dequantize(d, 40), x)
    assert [len(i.inputs) for i in islands(graph)] == [1]
    codes = (graph(x) - tvm_backend.compile(graph)(x)) / 0.03
    assert float(codes.abs().max()) < 1.5  # a float result on a tie may change one code


def test_an_island_does_not_depend_on_itself() -> None:
    """before -> integer -> after, and before -> after: two islands, not one."""
    net = NetBuilder(3)
    x = torch.randn(1, 16, 4, 4)
    before = net.call(torch.exp, net.input())
    c = net.conv2d(net.quantize(before), (16, 16), 1, (110, 60))
    after = net.call(torch.add, before, net.dequantize(c, 60))
    graph = net.finish(after, x)
    assert len(islands(graph)) == 2
    check(graph, x)


@pytest.mark.parametrize("also_float", [False, True])
def test_conditions_are_computed_where_they_are_read(also_float: bool) -> None:
    """A bool of one island, which another one reads behind an integer layer."""
    net = NetBuilder(3)
    x = torch.randn(1, 16, 4, 4)
    real = net.dequantize(net.quantize(net.input()), 110)
    before = net.call(torch.tanh, real) if also_float else real
    positive = net.call(operator.gt, before, 0.1)
    c = net.conv2d(net.quantize(before), (16, 16), 1, (110, 60))
    chosen = net.call(torch.where, positive, net.dequantize(c, 60), before)
    graph = net.finish(net.call(torch.exp, chosen), x)
    found = islands(graph)
    assert len(found) == 1 + also_float
    assert any(n.target is operator.gt for n in found[-1].module.graph.nodes)
    check(graph, x)


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_result_may_be_int64(keepdim: bool, tmp_path) -> None:
    net = NetBuilder(3)
    x = torch.randn(2, 5, 4, 6)
    real = net.dequantize(net.quantize(net.input()), 110)
    graph = net.finish(net.call(torch.argmax, real, 1, keepdim), x)
    compiled = tvm_backend.compile(graph)
    assert compiled(x).dtype == torch.int64 and torch.equal(compiled(x), graph(x))
    compiled.export(tmp_path)
    assert torch.equal(tvm_backend.load(tmp_path)(x), graph(x))


def test_int64_between_islands_and_kernels_is_refused() -> None:
    net = NetBuilder(3)
    x = torch.randn(2, 5, 4, 6)
    real = net.dequantize(net.quantize(net.input()), 110)
    labels = net.call(torch.argmax, real, 1)
    moved = net.call(reference.permute, labels, dims=(0, 2, 1))
    with pytest.raises(UnsupportedError, match=r"must deliver float32, it delivers torch\.int64"):
        lower(net.finish(moved, x), targets.X86_VNNI)


def test_readers_between_the_parts_of_an_island() -> None:
    """An integer node may come before the island's last node in the graph and read its first."""
    net = NetBuilder(3)
    x = torch.randn(1, 16, 4, 4)
    first = net.call(torch.exp, net.input())
    c = net.conv2d(net.quantize(first), (16, 16), 1, (110, 60))
    second = net.call(torch.neg, first)
    graph = net.finish((net.dequantize(c, 60), second), x)
    assert len(islands(graph)) == 1
    for result, expected in zip(tvm_backend.compile(graph)(x), graph(x), strict=True):
        assert torch.allclose(result, expected, rtol=1e-4, atol=0.04)


def test_moves_of_floats_are_no_island() -> None:
    net = NetBuilder(3)
    x = torch.randn(2, 3, 4, 5)
    real = net.dequantize(net.quantize(net.input()), 110)
    flat = net.call(reference.reshape, real, shape=(0, -1))
    turned = net.call(reference.permute, real, dims=(0, 2, 3, 1))
    graph = net.finish((flat, turned), x)
    assert islands(graph) == []
    assert all(map(torch.equal, tvm_backend.compile(graph)(x), graph(x)))


def test_max_pooling_is_no_island() -> None:
    net, x = NetBuilder(3), torch.randn(1, 3, 8, 8)
    x[0, 0, 2, 2] = torch.nan
    pooled = net.call(reference.max_pool2d, net.input(), rows=windows(8, 3, 2, 1),
                      cols=windows(8, 3, 2, 1))  # fmt: skip
    graph = net.finish((pooled, net.call(torch.softmax, pooled, dim=1)), x)
    assert len(islands(graph)) == 1
    (result, soft), (expected, _) = tvm_backend.compile(graph)(x), graph(x)
    assert torch.equal(result.isnan(), expected.isnan()) and soft.isnan().any()
    assert torch.equal(result[:, 1:], expected[:, 1:])


def test_modules_and_parameters_in_an_island() -> None:
    net = NetBuilder(3)
    x = torch.randn(2, 7, 24)
    net.root.norm = nn.LayerNorm(24)
    nn.init.normal_(net.root.norm.weight)
    real = net.dequantize(net.quantize(net.input()), 110)
    normed = net.graph.call_module("norm", (real,))
    scaled = net.call(torch.mul, normed, net.tensor(torch.randn(24)))
    scores = net.call(torch.matmul, scaled, net.graph.call_method("transpose", (scaled, 1, 2)))
    check(net.finish(scores, x), x)


def test_several_islands_export(tmp_path) -> None:
    net = NetBuilder(3)
    x = torch.randn(1, 16, 4, 4)
    value = net.input()
    for _ in range(2):
        value = net.dequantize(net.quantize(net.call(torch.sigmoid, value)), 110)
    graph = net.finish(net.call(torch.sigmoid, value), x)
    assert len(islands(graph)) == 3
    compiled = tvm_backend.compile(graph)
    compiled.export(tmp_path)
    assert torch.equal(tvm_backend.load(tmp_path)(x), compiled(x))


def test_equal_islands_are_compiled_once(monkeypatch) -> None:
    imported: list[str] = []
    original = float_island._import

    def spy(module, inputs):
        imported.append(str(module.code))
        return original(module, inputs)

    monkeypatch.setattr(float_island, "_import", spy)
    for slope, expected in ((0.25, 1), (0.5, 2)):
        torch.manual_seed(0)
        net, x = NetBuilder(3), torch.randn(2, 6, 16)
        value = net.input()
        for i in range(3):
            weight, bias = net.tensor(torch.randn(16)), net.tensor(torch.randn(16))
            real = net.dequantize(net.quantize(value), 110)
            real = net.call(F.layer_norm, real, (16,), weight, bias)
            value = net.call(F.leaky_relu, real, slope if i == 2 else 0.25)
        imported.clear()
        check(net.finish(value, x), x)
        assert len(imported) == expected


def island_net(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.fx.GraphModule:
    """A float operator behind a quantized input."""
    net = NetBuilder(3)
    real = net.dequantize(net.quantize(net.input()), 110)
    return net.finish(net.call(function, real), torch.randn(1, 3, 4, 6))


def shrunk(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, (2, 3), mode="bilinear", antialias=True)  # TVM ignores antialias


def sampled(x: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(x, torch.zeros(1, 3, 3, 2), align_corners=False)  # of another shape


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.special.bessel_j0, "bessel_j0[^$]*Unsupported"),
        (shrunk, "shrunk[^$]*something else than torch"),
        (sampled, "sampled[^$]*the shape"),
    ],
)
@pytest.mark.parametrize("target", [tvm_backend.host_target(), targets.CORTEX_A53], ids=str)
def test_what_tvm_cannot_do_is_refused_by_name(function, message: str, target: Target) -> None:
    with pytest.raises(UnsupportedError, match=message):
        _ = tvm_backend.compile(island_net(function), target).executable


def summed(x: torch.Tensor) -> torch.Tensor:
    return torch.cumsum(x, 1)


def largest(x: torch.Tensor) -> torch.Tensor:
    return x.max(1, keepdim=True)[0]


def turned(x: torch.Tensor) -> torch.Tensor:
    return x[:, torch.tensor([2, 0, 1])]


@pytest.mark.parametrize("function", [summed, largest, turned])
def test_scans_sorts_and_gathers(function, capfd: pytest.CaptureFixture[str]) -> None:
    check(island_net(function), torch.randn(1, 3, 4, 6))
    assert "Warning" not in capfd.readouterr().err
