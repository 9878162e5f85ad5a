"""Hypothesis strategy for small random CNNs, shared by the tests of compiler and backend.

A network is a list of steps; each reads one or two earlier values and appends its result. Steps
that do not fit the shapes at hand are left out, so every drawn network runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant.config import Config, OpConfig
from tests.zoo import randomize_batch_norm

LARGEST = 3000  # elements of a value
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GELU,
    lambda: nn.LeakyReLU(0.1), lambda: nn.ELU(0.8), nn.Hardsigmoid,
)  # fmt: skip


class Apply(nn.Module):
    """A function of one or two values as a module."""

    def __init__(self, label: str, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.label, self.function = label, function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)

    def extra_repr(self) -> str:
        return self.label


@dataclass(frozen=True)
class Step:
    """A module and the values it reads."""

    module: nn.Module
    operands: tuple[int, ...]


class RandomNet(nn.Module):
    """Runs the steps; all values that no step reads are outputs."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([s.module for s in steps])
        self.operands = [s.operands for s in steps]
        used = {i for operands in self.operands for i in operands}
        self.results = [i + 1 for i in range(len(steps)) if i + 1 not in used]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for layer, operands in zip(self.layers, self.operands, strict=True):
            values.append(layer(*[values[i] for i in operands]))
        return tuple(values[i] for i in self.results)

    def __repr__(self) -> str:
        rows = zip(self.layers, self.operands, strict=True)
        return "\n".join(f"{i + 1} = {m}{list(o)}" for i, (m, o) in enumerate(rows))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _pair(draw: st.DrawFn, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


def _finished(draw: st.DrawFn, conv: nn.Module, channels: int) -> nn.Module:
    """Optional batch norm and activation behind a convolution."""
    layers = [conv]
    if draw(st.booleans()):
        layers.append(nn.BatchNorm2d(channels))
        randomize_batch_norm(layers[-1])  # type: ignore[arg-type]
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    return nn.Sequential(*layers)


def _conv(draw: st.DrawFn, c: int) -> nn.Module:
    groups = draw(st.sampled_from(_divisors(c)))
    out = groups * draw(st.integers(1, max(1, 9 // groups)))
    conv = nn.Conv2d(
        c, out, _pair(draw, 1, 3), _pair(draw, 1, 2), _pair(draw, 0, 2), _pair(draw, 1, 2),
        groups, draw(st.booleans()),
    )  # fmt: skip
    return _finished(draw, conv, out)


def _depthwise(draw: st.DrawFn, c: int) -> nn.Module:
    kernel = draw(st.sampled_from((3, 5)))
    conv = nn.Conv2d(c, c, kernel, draw(st.integers(1, 2)), kernel // 2, groups=c)
    return _finished(draw, conv, c)


def _transposed(draw: st.DrawFn, c: int) -> nn.Module:
    out, stride = draw(st.integers(1, 6)), draw(st.integers(1, 2))
    return nn.ConvTranspose2d(c, out, _pair(draw, 1, 3), stride, 0, stride - 1)


def _max_pool(draw: st.DrawFn, c: int) -> nn.Module:
    kernel = draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel // 2))
    return nn.MaxPool2d(kernel, draw(st.integers(1, 3)), padding, ceil_mode=draw(st.booleans()))


def _avg_pool(draw: st.DrawFn, c: int) -> nn.Module:
    kernel = draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel // 2))
    return nn.AvgPool2d(kernel, draw(st.integers(1, 3)), padding, draw(st.booleans()),
                        draw(st.booleans()))  # fmt: skip


def _adaptive(draw: st.DrawFn, c: int) -> nn.Module:
    return nn.AdaptiveAvgPool2d(draw(st.sampled_from(((1, 1), (2, 3)))))


def _activation(draw: st.DrawFn, c: int) -> nn.Module:
    return draw(st.sampled_from(ACTIVATIONS))()


def _shuffle(draw: st.DrawFn, c: int) -> nn.Module:
    groups = draw(st.sampled_from(_divisors(c)))
    return Apply(f"shuffle {groups}", lambda x: F.channel_shuffle(x, groups))


def _pad(draw: st.DrawFn, c: int) -> nn.Module:
    amounts = tuple(draw(st.integers(0, 2)) for _ in range(4))
    mode = draw(st.sampled_from(("constant", "replicate")))
    return Apply(f"pad {mode} {amounts}", lambda x: F.pad(x, amounts, mode))


def _upsample(draw: st.DrawFn, c: int) -> nn.Module:
    mode = draw(st.sampled_from(("nearest", "bilinear")))
    factor = draw(st.sampled_from((2.0, 1.5)))
    return Apply(f"{mode} {factor}", lambda x: F.interpolate(x, scale_factor=factor, mode=mode))


def _slice(draw: st.DrawFn, c: int) -> nn.Module:
    start = draw(st.integers(0, c - 1))
    return Apply(f"channels {start}:", lambda x: x[:, start:, ::1, :])


def _gate(draw: st.DrawFn, c: int) -> nn.Module:
    return Apply("gate", lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


UNARY = (_conv, _conv, _depthwise, _transposed, _max_pool, _avg_pool, _adaptive, _activation,
         _shuffle, _pad, _upsample, _slice, _gate)  # fmt: skip
BINARY = (
    ("add", torch.add),
    ("add relu", lambda a, b: F.relu(a + b)),
    ("mul", torch.mul),
    ("cat", lambda a, b: torch.cat([a, b], 1)),
)


def _step(draw: st.DrawFn, values: list[Tensor]) -> Step:
    last = len(values) - 1
    source = last if draw(st.integers(0, 3)) else draw(st.integers(0, last))
    if last > 0 and draw(st.integers(0, 3)) == 0:
        label, function = draw(st.sampled_from(BINARY))
        fits = [i for i, v in enumerate(values) if _fits(label, v, values[source])]
        return Step(Apply(label, function), (source, draw(st.sampled_from(fits))))
    make = draw(st.sampled_from(UNARY))
    return Step(make(draw, values[source].shape[1]), (source,))


def _fits(label: str, a: Tensor, b: Tensor) -> bool:
    return a.shape[2:] == b.shape[2:] if label == "cat" else a.shape == b.shape


@st.composite
def networks(draw: st.DrawFn, steps: int = 5) -> tuple[RandomNet, Tensor]:
    """A network in eval mode and a batch of inputs for it."""
    torch.manual_seed(draw(st.integers(0, 1 << 16)))
    shape = (3, draw(st.integers(1, 7)), *_pair(draw, 3, 9))
    x = torch.randn(shape)
    values, program = [x], []
    for _ in range(draw(st.integers(1, steps))):
        step = _step(draw, values)
        try:
            with torch.no_grad():
                value = step.module.eval()(*[values[i] for i in step.operands])
        except (RuntimeError, ValueError):  # the window or padding does not fit the plane
            continue
        if 0 < value.numel() <= LARGEST and math.isfinite(float(value.abs().max())):
            program.append(step)
            values.append(value)
    head = nn.Sequential(nn.Flatten(), nn.Linear(values[-1][0].numel(), 4))
    program.append(Step(head, (len(values) - 1,)))
    return RandomNet(program).eval(), x


@st.composite
def mixed_networks(draw: st.DrawFn, steps: int = 4) -> tuple[RandomNet, Tensor, Config]:
    """A network, inputs, and 16-bit activations for it with some operators at fewer bits."""
    model, x = draw(networks(steps))
    head = len(model.layers) - 1  # delivers floats, so that its rule matches and changes no grid
    layers = {*draw(st.sets(st.integers(0, head), max_size=3)), head}
    narrow = OpConfig(draw(st.integers(2, 8)), draw(st.sampled_from((4, 8))))
    names = "|".join(map(str, sorted(layers)))
    return (
        model,
        x,
        Config(
            default=OpConfig(draw(st.integers(2, 8)), 16),
            first_last=draw(st.sampled_from((None, OpConfig(8, 8)))),
            residual_bits=draw(st.sampled_from((None, 8, 16))),
            patterns={rf"layers\.({names})(\..*)?": narrow},
        ),
    )


@st.composite
def low_bit_networks(draw: st.DrawFn, steps: int = 4) -> tuple[RandomNet, Tensor, Config]:
    """A network, inputs, and few bits for it, sums on the grids of their readers or finer ones."""
    model, x = draw(networks(steps))
    residual_bits = draw(st.sampled_from((None, 8)))
    return model, x, Config(default=OpConfig(3, 4), residual_bits=residual_bits)
