"""Which values can be cut into samples, and networks that fold or mix them, end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.errors import ConfigError
from fxquant.ir.batch import fixed_batch
from fxquant.ir.samples import by_sample
from fxquant.solvers import GPTQ, UWC, Scope, Solver, Training
from tests.graphs import fused

IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))
SHORT = Training(iterations=4, batch=4)
SOLVERS: dict[str, Solver] = {
    "gptq": GPTQ(),
    "units": UWC(SHORT),
    "layers": UWC(SHORT, region=Scope.LAYER),
    "network": UWC(SHORT, region=Scope.NETWORK),
}


class Net(nn.Module):
    """Layers at hand for a function."""

    def __init__(self, function: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.anchors = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def tokens(net: Net, x: Tensor) -> Tensor:
    return net.stem(x).flatten(2).permute(0, 2, 1)


FOLDED: dict[str, Callable[[Net, Tensor], Any]] = {
    "pixels": lambda m, x: m.second(F.relu(m.first(tokens(m, x).reshape(-1, 8)))),
    "there_and_back": lambda m, x: m.second(
        F.relu(m.first(tokens(m, x).reshape(-1, 8))).view(x.shape[0], 6, 6, 8)
    ),
    "frames": lambda m, x: (
        m.stem(x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(0, 1))
        .unflatten(0, (x.shape[0], 2))
        .mean((1, 3, 4))
    ),
    "attention": lambda m, x: m.second(m.attention(*[tokens(m, x)] * 3)[0]),
    "tokens_first": lambda m, x: m.second(F.relu(m.first(tokens(m, x).permute(1, 0, 2)))).permute(
        1, 0, 2
    ),
    "maximum": lambda m, x: m.head(m.stem(x)).max(1)[0],
    "best_two": lambda m, x: m.head(m.stem(x).topk(2, 1).values.repeat(1, 4, 1, 1)),
    "unbound": lambda m, x: m.second(m.stem(x).mean(-1).unbind(2)[1]),
    "scalar": lambda m, x: m.head(F.relu(m.stem(x))).mean(),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", FOLDED)
def test_networks_that_fold_axes_are_calibrated(name: str, solver: str) -> None:
    model = Net(FOLDED[name]).eval()
    batch = 12 if name == "scalar" else 1
    result = fxquant.quantize(
        model, [IMAGES], IMAGES[:batch], solver=SOLVERS[solver], progress=False
    )
    with torch.no_grad():
        expected = model(IMAGES)
    error = (result(IMAGES) - expected).square().mean().sqrt()
    assert result(IMAGES).shape == expected.shape
    assert error < 0.05 * max(float(expected.abs().max()), 0.1)


def test_every_row_of_a_sample_counts() -> None:
    """A linear layer over pixels learns from all of them, not from those of the first images."""
    rows: list[int] = []

    class Look(GPTQ):
        def solve_layer(self, problem: Any, rng: torch.Generator) -> Any:
            rows.append(sum(len(chunk[0]) for chunk in problem.quantized_operands))
            return super().solve_layer(problem, rng)

    model = Net(FOLDED["pixels"]).eval()
    fxquant.quantize(model, [IMAGES], IMAGES[:1], solver=Look(), progress=False)
    assert rows == [12, 12 * 36, 12 * 36]


MIXING: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "softmax": lambda m, x: m.head(m.stem(x)).softmax(0),
    "centered": lambda m, x: m.head(x.repeat(1, 3, 1, 1)[:, :8] - x.mean(0, keepdim=True)[:, :1]),
    "scalar": FOLDED["scalar"],
}


@pytest.mark.parametrize("name", MIXING)
def test_results_that_mix_samples_fix_the_batch(name: str) -> None:
    assert fixed_batch(fused(Net(MIXING[name]).eval(), IMAGES)) == 12


@pytest.mark.parametrize("name", sorted({*FOLDED} - {"scalar", "attention"}))
def test_results_that_do_not_mix_samples_take_any_batch(name: str) -> None:
    assert fixed_batch(fused(Net(FOLDED[name]).eval(), IMAGES)) is None


def test_tokens_before_samples_cannot_be_cut() -> None:
    graph = fused(Net(FOLDED["tokens_first"]).eval(), IMAGES)
    nodes = {n.name: n for n in graph.graph.nodes}
    known = by_sample(graph)
    assert known is not None
    for name in ("stem", "second"):
        assert (name in known) == (name == "stem"), nodes[name].meta["shape"]


OUTPUTS: dict[str, Callable[[Net, Tensor], Any]] = {
    "constant": lambda m, x: (m.stem(x), m.anchors),
    "none": lambda m, x: [m.stem(x), None, 3],
    "nested": lambda m, x: {"y": (m.stem(x),), "name": "abc"},
    "computed": lambda m, x: (m.stem(x), m.anchors.exp()),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_several_batches_are_put_together(name: str) -> None:
    model = Net(OUTPUTS[name]).eval()
    result = fxquant.quantize(model, [IMAGES], IMAGES[:1], solver=GPTQ(), progress=False)
    many = IMAGES.repeat(11, 1, 1, 1)  # 132 samples run in slices of 64
    one, all_ = result(IMAGES), result(many)

    def check(few: Any, more: Any) -> None:
        assert type(few) is type(more)
        if isinstance(few, Tensor):
            assert torch.equal(more, few if len(few) == 5 else few.repeat(11, 1, 1, 1))
        elif isinstance(few, dict | list | tuple):
            assert len(few) == len(more)
            keys = few if isinstance(few, dict) else range(len(few))
            for key in keys:
                check(few[key], more[key])
        else:
            assert few == more

    check(one, all_)


def test_one_number_for_several_batches_is_refused() -> None:
    model = Net(FOLDED["scalar"]).eval()
    data = list(IMAGES.split(4))
    result = fxquant.quantize(model, data, IMAGES[:4], solver=GPTQ(), progress=False)
    with pytest.raises(ConfigError, match="one number for a whole batch"):
        result(IMAGES)
