"""The QDQ model in ONNX Runtime has the codes of the integer reference, in every value.

Operators are compared one by one: each reads the codes of the reference, so that a rounding
difference counts once and not in everything that follows. Whole networks are compared too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter, Node

import fxquant
from fxquant.errors import ConfigError, UnsupportedError
from fxquant.onnx import export_onnx, qdq_model
from tests.zoo import BY_NAME, ZOO, ZooModel

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ENOUGH = 0.999  # of all codes are within 1 of the reference
ENOUGH_AT_THE_END = 0.995  # where differences of earlier operators add up


class _Values(Interpreter):
    """Runs the integer graph and keeps every value."""

    kept: dict[str, Tensor]

    def run_node(self, n: Node):
        self.kept[n.name] = super().run_node(n)
        return self.kept[n.name]


def run(model: bytes, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Results of all outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Without VNNI the runtime's u8 x s8 kernels saturate at int16; this option avoids them.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip(names, session.run(None, feeds), strict=True))


def code_errors(
    quantized: fxquant.Quantized, inputs: tuple[Tensor, ...], alone: bool = True
) -> np.ndarray:
    """Distances of the runtime's codes to those of the reference, over all quantized values.

    Args:
        quantized: The network.
        inputs: Its inputs.
        alone: Every operator reads the reference's codes.
    """
    from fxquant.onnx.export import OnnxBuilder

    builder = OnnxBuilder(quantized, None)
    graph = (model := builder.run()).graph
    reference = _Values(quantized.integer, garbage_collect_values=False)
    reference.kept = {}
    with torch.no_grad():
        reference.run(*inputs)
    expected, info = {}, onnx.helper.make_tensor_value_info
    for node, (name, grid) in builder.codes.items():
        codes = reference.kept.get(f"{node.name}_quantize", reference.kept[node.name])
        kind = onnx.TensorProto.UINT8 if grid.qmax <= 255 else onnx.TensorProto.UINT16
        expected[name] = codes
        graph.output.append(info(name, kind, None))
        if alone:
            graph.input.append(info(f"{name}_in", kind, list(codes.shape)))
    for node in graph.node:
        if alone and node.op_type == "DequantizeLinear" and node.input[0] in expected:
            node.input[0] += "_in"
    fed = (*inputs, *expected.values()) if alone else inputs
    actual = run(model.SerializeToString(), fed)
    errors = [actual[n].astype(int) - c.numpy().astype(int) for n, c in expected.items()]
    return np.abs(np.concatenate([e.flatten() for e in errors]))


def quantized_zoo(entry: ZooModel, config: fxquant.Config = fxquant.W8A8) -> fxquant.Quantized:
    data = [entry.inputs(seed) for seed in range(4)]
    solver = fxquant.solvers.RoundToNearest()
    return fxquant.quantize(entry.make(), data, data[0], config, solver, progress=False)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_codes_agree(entry: ZooModel) -> None:
    quantized = quantized_zoo(entry)
    errors = code_errors(quantized, entry.inputs(seed=9))
    assert (errors <= 1).mean() >= ENOUGH and errors.max() <= 2
    errors = code_errors(quantized, entry.inputs(seed=9), alone=False)
    assert (errors <= 1).mean() >= ENOUGH_AT_THE_END


@pytest.mark.parametrize(
    "config", [fxquant.W4A4, fxquant.W2A8, fxquant.preset(8, 16)], ids=["W4A4", "W2A8", "W8A16"]
)
@pytest.mark.parametrize("name", ["residual", "branches"])
def test_codes_of_other_widths_agree(name: str, config: fxquant.Config) -> None:
    entry = BY_NAME[name]
    errors = code_errors(quantized_zoo(entry, config), entry.inputs(seed=9))
    assert (errors <= 1).mean() >= ENOUGH


def test_float_outputs_agree_with_the_reference() -> None:
    entry = BY_NAME["two_in_two_out"]
    quantized, inputs = quantized_zoo(entry), entry.inputs(seed=9)
    expected = quantized.reference(*inputs)
    flat = [expected["map"], *expected["scores"]]
    for value, actual in zip(flat, run(qdq_model(quantized), inputs).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), value, atol=0.05, rtol=0.05)


def test_residual_sums_are_quantized_on_request() -> None:
    entry = BY_NAME["residual"]
    quantized, inputs = quantized_zoo(entry), entry.inputs(seed=9)
    plain, split = qdq_model(quantized), qdq_model(quantized, inputs)

    def count(model: bytes) -> int:
        return sum(n.op_type == "QuantizeLinear" for n in onnx.load_from_string(model).graph.node)

    assert count(split) == count(plain) + 1
    a, b = run(plain, inputs)["output0"], run(split, inputs)["output0"]
    np.testing.assert_allclose(a, b, atol=0.05)
    assert qdq_model(quantized, inputs[0]) == split
    quantized.batch = 1  # as if captured for it: the ranges are those over all batches
    halves = tuple(torch.cat([x, x / 2]) for x in inputs)
    assert qdq_model(quantized, halves) == split


@pytest.mark.parametrize(
    "sample",
    [torch.randn(3, 4), torch.ones(1, 3, 8, 8, dtype=torch.int64), ()],
    ids=["shape", "type", "number"],
)
def test_samples_that_do_not_fit_are_refused(sample: Any, tmp_path: Path) -> None:
    quantized = quantized_zoo(BY_NAME["residual"])
    with pytest.raises(ConfigError, match="input"):
        quantized.export_onnx(tmp_path / "net.onnx", sample)


def test_every_reader_of_a_value_has_its_own_dequantize() -> None:
    graph = onnx.load_from_string(qdq_model(quantized_zoo(BY_NAME["branches"]))).graph
    results = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    readers = [i for n in graph.node for i in n.input if i in results]
    assert sorted(readers) == sorted(results)


class Wide(nn.Module):
    """Pools, paddings and float operators that need more than one ONNX node."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)
        self.norm, self.proj = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.stem(x), beta=2.0)
        x = F.max_pool2d(self.up(x), 3, 2, padding=1, dilation=2)
        x = F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        x = F.adaptive_avg_pool2d(F.mish(x), (3, 2))
        tokens = x.flatten(2).transpose(1, 2)
        scores = torch.softmax(tokens @ tokens.transpose(1, 2) / 2.0, -1)
        tokens = self.norm((scores @ tokens).flatten(1).reshape(-1, 3, 12))
        return self.proj(F.gelu(tokens, approximate="tanh") - 0.5)


def test_composed_operators_agree() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 11, 13)
    model = Wide()
    quantized = fxquant.quantize(model, [x], progress=False)
    errors = code_errors(quantized, (x[:1],))
    assert (errors <= 1).mean() >= ENOUGH
    (actual,) = run(qdq_model(quantized), (x[:1],)).values()
    torch.testing.assert_close(
        torch.from_numpy(actual), quantized.reference(x[:1]), atol=0.05, rtol=0.05
    )


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(torch.sin(x), 1)


def test_operators_without_an_onnx_form_are_all_named(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 4)
    quantized = fxquant.quantize(Odd(), [x], progress=False)
    with pytest.raises(UnsupportedError, match="cumsum, sin"):
        export_onnx(quantized, tmp_path / "odd.onnx")
    assert not (tmp_path / "odd.onnx").exists()


def test_the_file_is_checked_onnx_and_the_same_each_time(tmp_path: Path) -> None:
    quantized = quantized_zoo(BY_NAME["convbn_relu"])
    path = export_onnx(quantized, tmp_path / "new" / "net.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    assert path.read_bytes() == qdq_model(quantized)
