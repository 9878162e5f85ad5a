"""Tiny models, one a structure the compiler must understand. `ZOO` lists them.

Sizes are odd and small on purpose: borders and rests are where kernels and windows go wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ZooModel:
    """A model and the shapes of its inputs (batch included)."""

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 9, 7),)

    def make(self) -> nn.Module:
        """The model with reproducible weights and non-trivial batch norms, in eval mode."""
        torch.manual_seed(0)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                randomize_batch_norm(module)
        return model.eval()

    def inputs(self, seed: int = 1, batch: int = 2) -> tuple[Tensor, ...]:
        """Random inputs."""
        rng = torch.Generator().manual_seed(seed)
        return tuple(torch.randn((batch, *s[1:]), generator=rng) for s in self.shapes)

    def __str__(self) -> str:
        return self.name


def randomize_batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Statistics and affine parameters of a trained layer."""
    assert module.running_mean is not None and module.running_var is not None
    nn.init.normal_(module.running_mean, 0.0, 0.3)
    nn.init.uniform_(module.running_var, 0.5, 1.5)
    if module.affine:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0.0, 0.3)


def conv_bn(i: int, o: int, k: int = 3, act: nn.Module | None = None, **kwargs) -> nn.Sequential:
    """Convolution, batch norm and an optional activation."""
    conv = nn.Conv2d(i, o, k, padding=kwargs.pop("padding", k // 2), bias=False, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(o), *([] if act is None else [act]))


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, act=nn.ReLU())
        self.a, self.b = conv_bn(8, 8, act=nn.ReLU()), conv_bn(8, 8)
        self.down = conv_bn(8, 8, 1, stride=2)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.b(self.a(x)) + x)
        return self.head(F.relu(self.down(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.expand(s))


class InvertedBottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = conv_bn(5, 15, 1, nn.Hardswish())
        self.depthwise = conv_bn(15, 15, 5, nn.Hardswish(), groups=15)
        self.se = SqueezeExcite(15)
        self.project = conv_bn(15, 5, 1)
        self.stem, self.head = conv_bn(3, 5, act=nn.ReLU6()), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.project(self.se(self.depthwise(self.expand(x)))))


def standardized(weight: Tensor) -> Tensor:
    """Zero mean and unit variance of every filter."""
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)


class Constants(nn.Module):
    """What is computed from parameters: standardized and fusion weights, scales of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, act=nn.ReLU())
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.2)
        self.fusion = nn.Parameter(torch.tensor([0.7, 1.1]))
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.conv2d(x, standardized(self.weight) / 3, padding=1) * self.gain
        fusion = F.relu(self.fusion)
        fusion = fusion / (fusion.sum() + 1e-4)
        y = fusion[0] * F.silu(y) + fusion[1] * x
        gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
        return self.head(x - y * gate.expand_as(y))


class Shared(nn.Module):
    """One convolution used twice on different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(F.relu(self.conv(self.stem(x))))))


class Branches(nn.Module):
    """Inception-like: four branches of different depth, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.one = conv_bn(3, 4, 1, nn.ReLU())
        self.two = nn.Sequential(conv_bn(3, 2, 1, nn.ReLU()), conv_bn(2, 3, 3, nn.ReLU()))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(3, 2, 1, nn.ReLU()))
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.two(x), self.pool(x), x], 1))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's channel shuffle as people write it."""
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous()
    return x.view(n, -1, h, w)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, act=nn.ReLU())
        self.right, self.head = conv_bn(4, 4, groups=4), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        return self.head(shuffle(torch.cat((left, self.right(right)), dim=1), 2))


class OptionA(nn.Module):
    """CIFAR ResNet's parameter-free shortcut: subsample, then pad channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4, act=nn.ReLU())
        self.a, self.b = conv_bn(4, 8, act=nn.ReLU(), stride=2), conv_bn(8, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        return self.head(F.relu(self.b(self.a(x)) + shortcut))


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 6, 5, padding=2, bias=False), nn.BatchNorm1d(6), nn.PReLU(6),
            nn.MaxPool1d(2), nn.Conv1d(6, 4, 3, stride=2, dilation=2), nn.ReLU(), nn.AvgPool1d(2),
        )  # fmt: skip
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))


class TwoInTwoOut(nn.Module):
    """Two inputs, outputs in a dictionary with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.head = Head(4)

    def forward(self, x: Tensor, y: Tensor) -> dict:
        z = F.relu(self.a(x) + self.b(y))
        return {"map": torch.sigmoid(z), "scores": (self.head(z), z)}


class SoftmaxIsland(nn.Module):
    """A softmax in the middle: no integer form, the layers around it have one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head(self.after(x * torch.softmax(x, dim=1)))


def _activations() -> nn.Module:
    layers: list[nn.Module] = []
    for act in (nn.PReLU(4), nn.LeakyReLU(0.2), nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.ELU(0.7),
                nn.Sigmoid(), nn.Tanh(), nn.Mish(), nn.Hardtanh(-0.5, 0.5)):  # fmt: skip
        layers += [nn.Conv2d(4 if layers else 3, 4, 1), act]
    return nn.Sequential(*layers, Head(4))


def _decoder() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 6, act=nn.ReLU()), nn.ConvTranspose2d(6, 5, 3, 2, 1, 1, bias=False),
        nn.BatchNorm2d(5), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(5, 4, 3),
        nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.Conv2d(4, 2, 1),
    )  # fmt: skip


ZOO = (
    ZooModel("convbn_relu", lambda: nn.Sequential(conv_bn(3, 8, act=nn.ReLU()), Head(8))),
    ZooModel("residual", Residual),
    ZooModel("depthwise", lambda: nn.Sequential(
        conv_bn(3, 6, act=nn.ReLU6()), conv_bn(6, 6, groups=6, stride=2, act=nn.ReLU6()),
        conv_bn(6, 9, 1, groups=3), Head(9))),
    ZooModel("inverted_bottleneck", InvertedBottleneck),
    ZooModel("constants", Constants),
    ZooModel("shared_module", Shared),
    ZooModel("branches", Branches),
    ZooModel("channel_shuffle", Shuffle),
    ZooModel("option_a", OptionA),
    ZooModel("conv1d", Conv1d, ((2, 3, 17),)),
    ZooModel("decoder", _decoder),
    ZooModel("two_in_two_out", TwoInTwoOut, ((2, 3, 5, 7), (2, 2, 5, 7))),
    ZooModel("activations", _activations),
    ZooModel("lrn", lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.LocalResponseNorm(5, alpha=0.5, k=2.0),
        nn.MaxPool2d(3, 2, ceil_mode=True), Head(7))),
    ZooModel("softmax_island", SoftmaxIsland),
    ZooModel("standalone_bn", lambda: nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), Head(4))),
    ZooModel("mlp", lambda: nn.Sequential(
        nn.Linear(13, 17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 3)), ((2, 13),)),
)  # fmt: skip

BY_NAME = {entry.name: entry for entry in ZOO}
