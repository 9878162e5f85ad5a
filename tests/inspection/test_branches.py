"""Sums of branches that one convolution could compute are found, and others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.cli.main import main
from fxquant.inspection.branches import REMEDY, Branches, linear_branches
from fxquant.ir import meta
from tests.inspection.nets import quantized_net


class Block(nn.Module):
    """Branches as RepVGG trains them, or with one thing that keeps them apart."""

    def __init__(self, kind: str = "", channels: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.kind = kind
        stride = 2 if kind == "strides" else 1
        self.three = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.one = nn.Conv2d(channels, channels, 1, stride, groups=groups)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        three, one = self.three(x), self.one(x)
        if self.kind == "activation":
            one = torch.relu(one)
        if self.kind == "strides":
            one = F.interpolate(one, scale_factor=2.0)
        if self.kind == "sources":
            one = self.one(torch.relu(x))
        y = three + one
        if self.kind == "readers":
            return torch.relu(y + self.norm(x)) + one * three
        return torch.relu(y + (x if self.kind == "identity" else self.norm(x)))


def _graph(*blocks: nn.Module) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks).eval(), torch.randn(1, 3, 8, 8)
    return fxquant.prepare(model, x).graph


def test_branches_of_a_value_are_found() -> None:
    for groups in (1, 4, 8):
        first, second = linear_branches(_graph(Block(groups=groups), Block(groups=groups)))
        assert first == Branches(first.node, "1", "_0", ("_1_three", "_1_one", "_1_norm"), False)
        assert second.source == first.node and len(second.convolutions) == 3


def test_the_value_itself_may_be_added() -> None:
    (found,) = linear_branches(_graph(Block("identity")))
    assert found.identity and len(found.convolutions) == 2
    assert str(found) == (
        "_1 adds 2 convolutions of _0 and the value itself (_1_three, _1_one)"
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["activation", "strides", "sources"])
def test_a_batch_norm_joins_the_branch_that_remains(kind: str) -> None:
    """What does not belong is left out; the others are still one convolution."""
    (found,) = linear_branches(_graph(Block(kind)))
    assert found.convolutions == ("_1_three", "_1_norm")


def test_results_that_others_read_stay() -> None:
    assert not linear_branches(_graph(Block("readers")))
    assert not linear_branches(quantized_net().calibrated)  # a residual block


def test_one_convolution_computes_the_sum() -> None:
    """What the finding says, done: kernels padded to the largest and added."""
    graph = _graph(Block(), nn.Identity())
    (found,) = linear_branches(graph)
    weight, bias = torch.zeros(8, 8, 3, 3), torch.zeros(8)
    for node in graph.graph.nodes:
        if node.name in found.convolutions:
            part = meta.tensor_of(graph, node.args[1]).detach()
            dense = torch.diag_embed(part[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
            part = dense if node.kwargs["groups"] == 8 else part
            margin = (3 - part.shape[-1]) // 2
            weight += F.pad(part, [margin] * 4)
            bias += meta.tensor_of(graph, node.args[2]).detach()
    values: dict[str, Tensor] = {}
    x = torch.randn(1, 3, 8, 8)

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Tensor:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Keep(graph).run(x)
    merged = torch.relu(F.conv2d(values[found.source], weight, bias, padding=1))
    torch.testing.assert_close(values[found.node], merged, atol=1e-5, rtol=1e-5)


def test_report_and_command_line_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block()).eval()
    x = torch.randn(2, 3, 8, 8)
    quantized = fxquant.quantize(model, [x], solver=fxquant.solvers.RoundToNearest())
    (found,) = fxquant.inspect(quantized).branches
    page = fxquant.inspect(quantized).html()
    assert str(found) in page and REMEDY in page
    assert "#branches" not in fxquant.inspect(quantized_net()).html()
    quantized.save(tmp_path / "net.fxq")
    main(["inspect", str(tmp_path / "net.fxq")])
    text = capsys.readouterr().out
    assert f"sums that could be one convolution (1), {REMEDY}:" in text and str(found) in text
    main(["inspect", str(tmp_path / "net.fxq"), "--json"])
    assert json.loads(capsys.readouterr().out)["branches"][0]["node"] == found.node
