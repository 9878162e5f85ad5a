"""Graph substrate: metadata, stages and building."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule

from fxquant.config import W8A8
from fxquant.errors import StageError
from fxquant.ir import meta
from fxquant.ir.build import GraphBuilder, register
from fxquant.ir.stages import Stage, verify
from fxquant.numerics.types import activation_spec
from fxquant.ops import conv
from fxquant.ops.elementwise import clamp
from fxquant.passes.annotate import annotate
from tests.graphs import fused, node_of, normalized
from tests.zoo import BY_NAME, ZOO, ZooModel

KWARGS = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


def annotated(name: str) -> GraphModule:
    entry = BY_NAME[name]
    return annotate(fused(entry.make(), *entry.inputs()), W8A8)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_every_node_has_shape_and_origin(entry: ZooModel) -> None:
    """Traced shapes are the real ones, and errors can name where a node comes from."""
    gm = normalized(entry.make(), *entry.inputs())
    for node in gm.graph.nodes:
        if node.op == "output" or not node.users:
            continue
        assert isinstance(meta.shape_of(node), tuple)
        assert meta.dtype_of(node) is torch.float32
        if node.op == "call_function":
            assert meta.provenance(node).modules or meta.provenance(node).source


def test_source_lines_point_at_the_model() -> None:
    entry = BY_NAME["residual"]
    gm = normalized(entry.make(), *entry.inputs())
    assert "zoo.py:" in meta.place(node_of(gm, "add"))


def test_fused_node_names_all_its_modules() -> None:
    entry = BY_NAME["residual"]
    gm = fused(entry.make(), *entry.inputs())
    conv_node = next(n for n in gm.graph.nodes if n.name == "b_0")
    origin = meta.provenance(conv_node)
    assert origin.modules[:2] == ("b.0", "b.1") and origin.name == "b.0"
    assert {"Conv2d", "BatchNorm2d", "add", "relu"} <= set(origin.kinds)


def test_node_names_are_unique_and_the_modules() -> None:
    for name in ("residual", "shared_module", "conv1d", "channel_shuffle"):
        gm = fused(BY_NAME[name].make(), *BY_NAME[name].inputs())
        names = [n.name for n in gm.graph.nodes]
        assert len(set(names)) == len(names)


def test_builder_registers_a_tensor_once() -> None:
    builder = GraphBuilder()
    x = builder.placeholder("x", (1, 3, 4, 4), torch.float32)
    weight = torch.ones(2, 3, 1, 1)
    nodes = [builder.tensor(weight, "w") for _ in range(2)]
    assert nodes[0] is nodes[1]
    other = builder.tensor(torch.zeros(2, 3, 1, 1), "w")
    assert other.target != nodes[0].target
    y = builder.call(conv.conv2d, (x, nodes[0]), KWARGS, "y")
    assert meta.shape_of(y) == (1, 2, 4, 4)
    gm = builder.finish(builder.call(conv.conv2d, (x, other), KWARGS, "z"))
    assert [n.name for n in gm.graph.nodes if n.op == "call_function"] == ["z"]  # y is dead


def test_register_takes_a_free_name() -> None:
    gm = fused(BY_NAME["mlp"].make(), *BY_NAME["mlp"].inputs())
    first = register(gm, "a.b", torch.ones(1))
    second = register(gm, "a.b", torch.zeros(1, dtype=torch.int8))
    assert first == "a_b" and second == "a_b_1"


@pytest.mark.parametrize("stage", list(Stage))
def test_verify_accepts_what_the_pipeline_makes(stage: Stage) -> None:
    if stage in (Stage.FLOAT, Stage.FUSED, Stage.ANNOTATED):
        verify(annotated("residual"), stage)


def test_verify_finds_a_missing_shape() -> None:
    gm = annotated("residual")
    del node_of(gm, "avg_pool2d").meta["shape"]
    with pytest.raises(StageError, match="no recorded shape"):
        verify(gm, Stage.FUSED)


def test_verify_finds_an_unfolded_batch_norm() -> None:
    entry = BY_NAME["convbn_relu"]
    gm = normalized(entry.make(), *entry.inputs())
    verify(gm, Stage.FLOAT)
    with pytest.raises(StageError, match="fusion should have folded"):
        verify(gm, Stage.FUSED)


def test_verify_finds_an_operator_without_reason() -> None:
    gm = annotated("softmax_island")
    meta.set_float_reason(node_of(gm, "softmax"), None)
    with pytest.raises(StageError, match="no integer form and no reason"):
        verify(gm, Stage.ANNOTATED)


def test_verify_finds_an_unshared_grid() -> None:
    gm = annotated("option_a")
    node = node_of(gm, "pad")
    value = meta.quant(node)
    assert value is not None
    meta.set_quant(node, meta.TensorQuant(activation_spec(4), None, "broken"))
    with pytest.raises(StageError, match="must share the grid"):
        verify(gm, Stage.ANNOTATED)


def test_verify_finds_a_missing_grid() -> None:
    with pytest.raises(StageError, match="no quantization parameters"):
        verify(annotated("residual"), Stage.CALIBRATED)


def test_qparams_of_an_uncalibrated_value_are_an_error() -> None:
    gm = annotated("residual")
    with pytest.raises(StageError, match="calibration has not run"):
        meta.qparams(node_of(gm, "conv2d"))
    assert node_of(gm, "conv2d").target is not clamp
