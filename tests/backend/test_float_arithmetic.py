"""Normalizing the input in the network: float kernels that equal torch, and a standalone form."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxquant
import tvm_backend
from fxquant.targets import CORTEX_A53, X86_AVX2, Target
from tests.backend.kernel_harness import run_kernel
from tvm_backend.call import Call, Value
from tvm_backend.devices import host_target
from tvm_backend.emit.table import ARITHMETIC
from tvm_backend.kernel import Abi
from tvm_backend.layout import Flat
from tvm_backend.lower import lower
from tvm_backend.program import Island
from tvm_backend.standalone import export_standalone

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TARGETS = [X86_AVX2, pytest.param(CORTEX_A53, marks=pytest.mark.qemu)]


class Normalizing(nn.Module):
    """A small network whose input is normalized inside."""

    def __init__(self, normalize: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.normalize = normalize
        self.register_buffer("mean", MEAN)
        self.register_buffer("std", STD)
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x, self.mean, self.std)
        return self.head(self.conv(x).relu().mean((2, 3)))


SPELLINGS = {
    "operators": lambda x, mean, std: (x - mean) / std,
    "functions": lambda x, mean, std: torch.div(torch.sub(x, mean), std),
    "methods": lambda x, mean, std: x.sub(mean).div(std),
    "in_place": lambda x, mean, std: x.clone().sub_(mean).div_(std),
    "product": lambda x, mean, std: (x - mean) * (1 / std) + 0.125,
    "reversed": lambda x, mean, std: 1.0 - std * (mean - x),
    "rank_3": lambda x, mean, std: (x - mean[0]) / std[0],
}


def quantized_net(spelling: str) -> tuple[fxquant.Quantized, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 11)
    net = Normalizing(SPELLINGS[spelling]).eval()
    return fxquant.quantize(net, [x], progress=False), x


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_normalized_inputs_need_no_float_island(spelling: str) -> None:
    quantized, x = quantized_net(spelling)
    program = lower(quantized.integer, host_target())
    assert not any(isinstance(step, Island) for step in program.steps)
    compiled = tvm_backend.compile(quantized, progress=False)
    assert torch.equal(compiled(x), quantized.integer(x))
    x[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-42])
    assert torch.equal(compiled(x), quantized.integer(x))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_normalizing_network_stands_alone(target: Target, tmp_path) -> None:
    quantized, x = quantized_net("operators")
    standalone = export_standalone(lower(quantized.integer, target), tmp_path)
    (result,) = standalone.run([x[:1]])
    assert torch.equal(torch.as_tensor(result).reshape(1, 4), quantized.integer(x[:1]))


def test_beside_other_float_operators_it_stays_in_their_island() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 11)
    net = Normalizing(lambda x, mean, std: torch.sinh((x - mean) / std)).eval()
    quantized = fxquant.quantize(net, [x], progress=False)
    steps = lower(quantized.integer, host_target()).steps
    assert sum(isinstance(step, Island) for step in steps) == 1
    assert not any("_sub_" in s.kernel.name for s in steps if not isinstance(s, Island))


def flat(name: str, array: np.ndarray) -> Value:
    return Value(name, array.shape, Flat(array.shape, "float32"))


OPERANDS = (
    ((2, 3, 5, 7), (1, 3, 1, 1)), ((2, 3, 5, 7), (3, 1, 1)), ((2, 3, 5, 7), ()),
    ((2, 3, 5, 7), (5, 7)), ((2, 3, 5, 7), (1, 1, 5, 1)), ((2, 3, 5, 7), (2, 3, 5, 7)),
    ((33,), (1,)), ((4, 9), (4, 1)), ((4, 9), (9,)), ((2, 1, 1, 6), (1, 1, 1, 6)),
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("shape", "constant"), OPERANDS, ids=str)
def test_kernels_equal_torch(
    target: Target, shape: tuple[int, ...], constant: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    x, c = (rng.normal(size=s).astype(np.float32) for s in (shape, constant))
    for function, emit in ARITHMETIC.items():
        for first in (True, False):
            a, b = (x, c) if first else (c, x)
            expected = function(torch.from_numpy(a), torch.from_numpy(np.asarray(b))).numpy()
            inputs = flat("a", a), flat("b", b)
            (kernel,) = emit(Call("node", inputs, {}, {}, flat("y", expected), target))
            result = run_kernel(kernel, target, a.reshape(-1), b.reshape(-1), abi=Abi.BARE)
            assert (result.reshape(expected.shape) == expected).all(), (function, first)


def test_numbers_are_data() -> None:
    x = np.linspace(-2, 2, 40, dtype=np.float32).reshape(2, 20)
    for numbers, expected in (({"b": 0.1}, x - np.float32(0.1)), ({"a": 1}, np.float32(1) - x)):
        call = Call("node", (flat("x", x),), {}, numbers, flat("y", x), X86_AVX2)
        (kernel,) = ARITHMETIC[operator.sub](call)
        assert (run_kernel(kernel, X86_AVX2, x.reshape(-1)).reshape(x.shape) == expected).all()
    other = Call("node", (flat("x", x),), {}, {"b": 0.7}, flat("y", x), X86_AVX2)
    first = Call("node", (flat("x", x),), {}, {"b": 0.1}, flat("y", x), X86_AVX2)
    names = {ARITHMETIC[operator.sub](c)[0].name for c in (first, other)}
    assert len(names) == 1
