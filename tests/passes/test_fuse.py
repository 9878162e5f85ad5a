"""Every fusion rule: what it makes of its pattern, and when it must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.ir import meta
from fxquant.passes import fuse as fuse_module
from fxquant.passes.fuse import RULES, Refusal, fuse
from tests.graphs import check_frontend, check_same_floats, fused, node_of, normalized, ops_of
from tests.zoo import randomize_batch_norm

IMAGE = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(2))
ROW = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Layers at hand for a forward written as a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.transposed = nn.ConvTranspose2d(4, 4, 3, bias=False)
        self.linear = nn.Linear(4, 4)
        self.bn, self.bn1d = nn.BatchNorm2d(4), nn.BatchNorm1d(4)
        self.plain_bn = nn.BatchNorm2d(4, affine=False)
        for bn in (self.bn, self.bn1d, self.plain_bn):
            randomize_batch_norm(bn)
        self.gain = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def shuffled(x: Tensor, groups: int, dims: tuple[int, ...] = (0, 2, 1, 3, 4)) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).permute(dims).reshape(n, c, h, w)


def _twice(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.bn(y) * y


def _relu_and_plain(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.cat([F.relu(y), y], 1)


def _sum_and_conv(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.cat([y + x, y], 1)


# name: (forward, input, operators after fusion)
FUSED = {
    "conv_bn": (lambda m, x: m.bn(m.conv(x)), IMAGE, ["conv2d"]),
    "conv_without_bias_bn": (lambda m, x: m.bn(m.conv2(x)), IMAGE, ["conv2d"]),
    "conv_bn_without_affine": (lambda m, x: m.plain_bn(m.conv(x)), IMAGE, ["conv2d"]),
    "conv_bn_bn": (lambda m, x: m.plain_bn(m.bn(m.conv(x))), IMAGE, ["conv2d"]),
    "depthwise_bn": (lambda m, x: m.bn(m.depthwise(x)), IMAGE, ["conv2d"]),
    "transposed_bn": (lambda m, x: m.bn(m.transposed(x)), IMAGE, ["conv_transpose2d"]),
    "conv_scaled": (lambda m, x: 3 - 0.1 * m.conv(x), IMAGE, ["conv2d"]),
    "transposed_scaled": (lambda m, x: m.transposed(x) / 3 + 1, IMAGE, ["conv_transpose2d"]),
    "linear_scaled": (lambda m, x: -2 * m.linear(x), ROW, ["linear"]),
    "scaled_residual": (lambda m, x: F.relu(x - 0.1 * m.conv(x)), IMAGE, ["conv2d"]),
    "conv_channel_scale": (lambda m, x: m.conv(x) * m.gain + m.gain, IMAGE, ["conv2d"]),
    "scale_after_relu": (lambda m, x: F.relu(m.conv(x)) * 2, IMAGE, ["conv2d", "affine"]),
    "channel_scale_alone": (lambda m, x: F.relu(x) * m.gain, IMAGE, ["clamp", "conv2d"]),
    "linear_bn": (lambda m, x: m.bn1d(m.linear(x)), ROW, ["linear"]),
    "conv_bn_relu": (lambda m, x: F.relu6(m.bn(m.conv(x))), IMAGE, ["conv2d"]),
    "linear_relu": (lambda m, x: F.relu(m.linear(x)), ROW, ["linear"]),
    "bn_alone": (lambda m, x: m.bn(x), IMAGE, ["conv2d"]),
    "bn_alone_of_features": (lambda m, x: m.bn1d(x), ROW, ["reshape", "conv2d", "reshape"]),
    "bn_before_conv": (lambda m, x: m.conv(m.bn(x)), IMAGE, ["conv2d", "conv2d"]),
    "bn_after_relu": (lambda m, x: m.bn(F.relu(m.conv(x))), IMAGE, ["conv2d", "conv2d"]),
    "pad_conv": (lambda m, x: m.conv(F.pad(x, (1, 2, 0, 3))), IMAGE, ["conv2d"]),
    "add_relu": (lambda m, x: F.relu(x * 2 + x), IMAGE, ["affine", "add"]),
    "mul_relu6": (lambda m, x: F.relu6(x * x), IMAGE, ["mul"]),
    "conv_add": (lambda m, x: m.conv(x) + x, IMAGE, ["conv2d"]),
    "add_conv": (lambda m, x: x + m.conv(x), IMAGE, ["conv2d"]),
    "conv_add_relu": (lambda m, x: F.relu(m.conv(x) + x), IMAGE, ["conv2d"]),
    "conv_bn_add_relu": (lambda m, x: F.relu(m.bn(m.conv(x)) + x), IMAGE, ["conv2d"]),
    "two_convs_add": (lambda m, x: m.conv(x) + m.conv2(x), IMAGE, ["conv2d", "conv2d"]),
    "reshapes": (lambda m, x: x.flatten(2).reshape(x.shape[0], -1), IMAGE, ["reshape"]),
    "reshape_back": (lambda m, x: x.flatten(1).view(x.shape) * 2, IMAGE, ["affine"]),
    "relu_after_reshape": (
        lambda m, x: F.relu(m.conv(x).flatten(2)), IMAGE, ["conv2d", "reshape"]),
    "shuffle": (lambda m, x: shuffled(x, 2), IMAGE, ["channel_shuffle"]),
}  # fmt: skip
# name: (forward, input, operators, rule that must refuse, its reason)
REFUSED = {
    "bn_of_a_shared_result": (
        _twice, IMAGE, ["conv2d", "conv2d", "mul"], "fold_into_layer", "used elsewhere"),
    "relu_of_a_shared_result": (
        _relu_and_plain, IMAGE, ["conv2d", "clamp", "concat"], "clamp_into_producer",
        "used elsewhere"),
    "relu_of_a_relu": (
        lambda m, x: F.hardtanh(F.relu(m.conv(x))), IMAGE, ["conv2d", "clamp"],
        "clamp_into_producer", "already clamped"),
    "sum_of_a_shared_result": (
        _sum_and_conv, IMAGE, ["conv2d", "add", "concat"], "add_into_conv", "no operand"),
    "sum_after_relu": (
        lambda m, x: F.relu(m.conv(x)) + x, IMAGE, ["conv2d", "add"], "add_into_conv",
        "no operand"),
    "sum_of_a_depthwise": (
        lambda m, x: m.depthwise(x) + x, IMAGE, ["conv2d", "add"], "add_into_conv", "no operand"),
    "broadcast_sum": (
        lambda m, x: m.conv(x) + x.mean((2, 3), keepdim=True), IMAGE,
        ["conv2d", "avg_pool2d", "add"], "add_into_conv", "no operand"),
    "pad_with_a_value": (
        lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=0.5)), IMAGE, ["pad", "conv2d"],
        "pad_into_conv", "not a zero padding"),
    "pad_that_crops": (
        lambda m, x: m.conv(F.pad(x, (-1, 1, 0, 0))), IMAGE, ["pad", "conv2d"], "pad_into_conv",
        "not a zero padding"),
    "pad_of_channels": (
        lambda m, x: m.conv(F.pad(x[:, :2], (0, 0, 0, 0, 1, 1))), IMAGE,
        ["slice_axis", "pad", "conv2d"], "pad_into_conv", "not a zero padding"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fusion(name: str) -> None:
    function, x, expected = FUSED[name]
    assert ops_of(check_frontend(Net(function), [x])) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    """The graph keeps the operators, computes the same, and the rule says why it refused."""
    function, x, expected, rule, reason = REFUSED[name]
    gm = check_frontend(Net(function), [x])
    assert ops_of(gm) == expected
    rewrite = getattr(fuse_module, rule)
    graph = normalized(Net(function), x)
    for earlier in RULES:  # bring the graph to where the rule looks at it
        if earlier.rewrite is rewrite:
            break
        for node in list(graph.graph.nodes):
            if node.op == "call_function" and node.users:
                earlier.rewrite(graph, node)
    results = [rewrite(graph, n) for n in list(graph.graph.nodes) if n.op == "call_function"]
    refusals = [r for r in results if isinstance(r, Refusal)]
    assert any(reason in r.reason for r in refusals), (rule, refusals)


def test_other_permutations_are_no_shuffle() -> None:
    for function in (
        lambda m, x: shuffled(x, 2, (0, 2, 1, 4, 3)),
        lambda m, x: x.reshape(2, 2, 2, 6, 7).permute(0, 2, 1, 3, 4).reshape(2, 4, 7, 6),
    ):
        gm = check_same(function)
        assert "channel_shuffle" not in ops_of(gm)


def check_same(function: Callable[..., Tensor]):
    model = Net(function)
    gm = fused(model, IMAGE)
    check_same_floats(gm, model, [IMAGE], 5e-5)
    return gm


def test_every_rule_fires_somewhere() -> None:
    """A rule that no test triggers is untested."""
    fired: set[str] = set()
    for function, x, _ in FUSED.values():
        gm = normalized(Net(function), x)
        for rule in RULES:
            for node in list(gm.graph.nodes):
                alive = node.op == "call_function" and node.users
                if alive and rule.rewrite(gm, node) not in (None,):
                    fired.add(rule.name)
            gm.graph.eliminate_dead_code()
    assert fired == {rule.name for rule in RULES}


def test_fusion_keeps_its_input_graph_usable_and_is_idempotent() -> None:
    gm = fused(Net(lambda m, x: F.relu(m.bn(m.conv(x)) + x)), IMAGE)
    assert ops_of(fuse(gm)) == ops_of(gm)


def test_residual_and_clamp_are_arguments_of_the_conv() -> None:
    gm = fused(Net(lambda m, x: F.relu6(m.bn(m.conv(x)) + x)), IMAGE)
    node = node_of(gm, "conv2d")
    assert node.kwargs["clamp"] == (0.0, 6.0)
    assert node.args[3].op == "placeholder"
    assert meta.provenance(node).modules[:2] == ("conv", "bn")


def test_residual_takes_the_later_of_two_convs() -> None:
    """The sum lies where the second operand is known; the first conv's result is the residual."""
    gm = fused(Net(lambda m, x: m.conv(x) + m.conv2(x)), IMAGE)
    first, second = (node_of(gm, "conv2d", i) for i in (0, 1))
    assert second.args[3] is first


def test_batch_norm_fold_is_exact_for_tiny_variances() -> None:
    """Folding in float64 keeps channels of near-zero variance accurate."""
    model = Net(lambda m, x: m.bn(m.conv(x)))
    model.bn.running_var.fill_(1e-12)
    check_same_floats(fused(model, IMAGE), model, [IMAGE], 1e-4)


def test_shared_conv_with_two_batch_norms_folds_into_two_weights() -> None:
    model = Net(lambda m, x: m.plain_bn(m.conv(m.bn(m.conv(x)))))
    gm = check_frontend(model, [IMAGE])
    assert ops_of(gm) == ["conv2d", "conv2d"]
    assert node_of(gm, "conv2d", 0).args[1] is not node_of(gm, "conv2d", 1).args[1]


def test_conv1d_batch_norm_folds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)).eval()
    randomize_batch_norm(model[1])
    gm = check_frontend(model, [torch.randn(2, 4, 9)])
    assert ops_of(gm) == ["reshape", "conv2d", "reshape"]
