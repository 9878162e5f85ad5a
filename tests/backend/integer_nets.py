"""Small INTEGER graphs built by hand, with random numbers, for tests of the whole backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fxquant.numerics import reference as R
from tvm_backend.graph_view import record_shapes


def windows(size: int, kernel: int, stride: int, padding: int) -> tuple[tuple[int, int, int], ...]:
    """Clipped pooling windows along one axis."""
    count = (size + 2 * padding - kernel) // stride + 1
    starts = [i * stride - padding for i in range(count)]
    return tuple((max(s, 0), min(s + kernel, size), 1) for s in starts)


class NetBuilder:
    """Builds an INTEGER graph; every method adds one node.

    Args:
        seed: Of all random numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self.graph, self.root = Graph(), nn.Module()
        self.generator = torch.Generator().manual_seed(seed)

    def input(self, name: str = "x") -> Node:
        """A network input."""
        return self.graph.placeholder(name)

    def tensor(self, value: Tensor) -> Node:
        """A parameter tensor."""
        name = f"p{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def ints(self, low: int, high: int, shape: Any, dtype: torch.dtype) -> Tensor:
        """Random integers, bounds included."""
        return torch.randint(low, high + 1, shape, generator=self.generator).to(dtype)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Any call."""
        return self.graph.call_function(function, args, kwargs)

    def quantize(self, x: Node, zero_point: int = 110, scale: float = 0.02) -> Node:
        """float32 -> codes."""
        return self.call(R.quantize, x, scale=scale, zero_point=zero_point, qmin=0, qmax=255)

    def dequantize(self, x: Node, zero_point: int, scale: float = 0.03) -> Node:
        """Codes -> float32."""
        return self.call(R.dequantize, x, scale=scale, zero_point=zero_point)

    def _requant(self, reduction: int, channels: int) -> tuple[Node, Node]:
        shift = max(0, int(torch.log2(torch.tensor(reduction**0.5 * 40.0)).round()) - 7)
        multiplier = self.ints(1 << 14, (1 << 15) - 1, (channels,), torch.int16)
        jitter = self.ints(0, 1, (channels,), torch.int8)
        return self.tensor(multiplier), self.tensor((jitter + shift).to(torch.int8))

    def conv2d(
        self, x: Node, channels: tuple[int, int], kernel: int, zero_points: tuple[int, int],
        *, stride: int = 1, padding: int = 0, groups: int = 1, residual: Node | None = None,
        function: Callable[..., Any] = R.conv2d, dilation: int = 1,
    ) -> Node:  # fmt: skip
        """A convolution (or, with `function`, a transposed one)."""
        (c, o), k = channels, kernel
        weight = self.tensor(self.ints(-127, 127, (o, c // groups, k, k), torch.int8))
        bias = self.tensor(self.ints(-2000, 2000, (o,), torch.int32))
        multiplier, shift = self._requant(c // groups * k * k, o)
        extra = {}
        if residual is not None:
            extra = {"residual": residual, "residual_zero_point": 31,
                     "residual_multiplier": 25000, "residual_shift": -6}  # fmt: skip
        return self.call(
            function, x, weight, bias, multiplier, shift,
            stride=(stride, stride), padding=(padding,) * 4, dilation=(dilation, dilation),
            groups=groups, input_zero_point=zero_points[0], output_zero_point=zero_points[1],
            qmin=0, qmax=255, **extra,
        )  # fmt: skip

    def linear_accumulate(self, x: Node, features: tuple[int, int], zero_point: int) -> Node:
        """A last layer."""
        weight = self.tensor(self.ints(-127, 127, (features[1], features[0]), torch.int8))
        bias = self.tensor(self.ints(-2000, 2000, (features[1],), torch.int32))
        return self.call(R.linear_accumulate, x, weight, bias, input_zero_point=zero_point)

    def logits(self, acc: Node, channels: int, axis: int = -1) -> Node:
        """Accumulators -> float32."""
        scale = self.tensor(torch.rand(channels, generator=self.generator) * 1e-3)
        return self.call(R.dequantize_accumulator, acc, scale, axis=axis, lower=None, upper=None)

    def finish(self, outputs: Any, *examples: Tensor) -> GraphModule:
        """The graph with recorded shapes."""
        self.graph.output(outputs)
        graph_module = GraphModule(self.root, self.graph)
        return record_shapes(graph_module, *examples)


def residual_net(size: int = 20, batch: int = 1, channels: int = 16) -> tuple[GraphModule, Tensor]:
    """quantize, conv, max pool, conv + residual, avg pool, linear, float logits."""
    net = NetBuilder(1)
    x = torch.randn(batch, 3, size, size, generator=net.generator)
    q = net.quantize(net.input())
    a = net.conv2d(q, (3, channels), 3, (110, 31), stride=2, padding=1)
    half = (size - 1) // 2 + 1
    pool = windows(half, 3, 2, 1)
    p = net.call(R.max_pool2d, a, rows=pool, cols=pool)
    b = net.conv2d(p, (channels, channels), 3, (31, 60), padding=1)
    c = net.conv2d(b, (channels, channels), 3, (60, 40), padding=1, residual=p)
    whole = ((0, len(pool), 1),)
    m = net.tensor(torch.full((1, 1), 21000, dtype=torch.int16))
    s = net.tensor(torch.full((1, 1), -1, dtype=torch.int8))
    g = net.call(R.avg_pool2d, c, m, s, rows=whole, cols=whole, zero_point=40,
                 output_zero_point=10, qmin=0, qmax=255)  # fmt: skip
    f = net.call(R.reshape, g, shape=(0, channels))
    return net.finish(net.logits(net.linear_accumulate(f, (channels, 10), 10), 10), x), x
