"""Imported ONNX models compute what ONNX Runtime computes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxquant
from fxquant.errors import FileFormatError, UnsupportedError
from fxquant.onnx import import_onnx, qdq_model
from tests.zoo import BY_NAME, ZOO, ZooModel

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper = onnx.helper

FLOAT = onnx.TensorProto.FLOAT
IMAGE = (2, 4, 7, 9)
RNG = np.random.default_rng(0)


def model_of(nodes: list[Any], shape: tuple[Any, ...], constants: dict[str, Any], opset: int = 17):
    """A model with input `x` and output `y`."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def check(model: Any, folder: Path, shape: tuple[int, ...] = IMAGE) -> torch.fx.GraphModule:
    """Compare the imported module with the runtime on random inputs."""
    path = folder / "net.onnx"
    onnx.save(model, str(path))
    module = import_onnx(path).module
    x = torch.randn(shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options)
    (expected,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(module(x), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)
    return module


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def node(op: str, constants: dict[str, Any] | None = None, /, opset: int = 17, **attributes: Any):
    """One node on `x` and constants, in that order; the one without a name is absent."""
    constants = constants or {}
    made = helper.make_node(op, ["x", *constants], ["y"], **attributes)
    return [made], constants, opset


W = f32(6, 4, 3, 3)
CASES = {
    "conv": node("Conv", {"w": W, "b": f32(6)}, strides=[2, 1], pads=[1, 1, 1, 1]),
    "conv, unequal pads": node("Conv", {"w": W}, pads=[0, 1, 2, 1], dilations=[1, 2]),
    "conv, groups": node("Conv", {"w": f32(8, 2, 1, 3)}, group=2, pads=[0, 1, 0, 1]),
    "conv, same upper": node("Conv", {"w": W}, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv, same lower": node("Conv", {"w": f32(6, 4, 2, 2)}, auto_pad="SAME_LOWER"),
    "conv transpose": node("ConvTranspose", {"w": f32(4, 3, 3, 3), "b": f32(6)}, group=2,
                           strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
    "batch norm": node("BatchNormalization", {"weight": f32(4), "b": f32(4), "m": f32(4),
                                              "v": np.abs(f32(4))}, epsilon=1e-3),
    "max pool": node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    "max pool, unequal pads": node("MaxPool", kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
    "max pool, wide pads": node("MaxPool", kernel_shape=[3, 3], pads=[2, 2, 2, 2]),
    "max pool, wide pads, ceil": node("MaxPool", kernel_shape=[5, 5], pads=[3, 3, 3, 3],
                                      strides=[3, 1], ceil_mode=1),
    "average pool": node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool, counted": node("AveragePool", kernel_shape=[3, 3], pads=[0, 0, 1, 1],
                                  count_include_pad=1),
    "average pool, wide pads": node("AveragePool", kernel_shape=[3, 3], pads=[2, 2, 2, 2],
                                    count_include_pad=1),
    "global average pool": node("GlobalAveragePool"),
    "global max pool": node("GlobalMaxPool"),
    "lrn": node("LRN", size=3, alpha=0.3, beta=0.75, bias=1.5),
    "add scalar": node("Add", {"c": np.float32(0.7)}),
    "sub scalar": node("Sub", {"c": f32(1)}),
    "mul channels": node("Mul", {"c": f32(4, 1, 1)}),
    "add channels": node("Add", {"c": f32(1, 4, 1, 1)}),
    "div channels": node("Div", {"c": 1 + np.abs(f32(4, 1, 1))}),
    "pow": node("Pow", {"c": np.float32(2)}),
    "add scalar of a higher rank": node("Add", {"c": f32(1, 1, 1, 1, 1)}),
    "add channels of a higher rank": node("Mul", {"c": f32(1, 1, 4, 1, 1)}),
    "add image": node("Add", {"c": f32(7, 9)}),
    "clip": node("Clip", {"lo": np.float32(-0.5), "hi": np.float32(0.9)}),
    "clip attributes": node("Clip", opset=10, min=0.0, max=6.0),
    "leaky relu": node("LeakyRelu", alpha=0.3),
    "prelu": node("PRelu", {"s": f32(4, 1, 1)}),
    "hard sigmoid": node("HardSigmoid", alpha=0.2, beta=0.4),
    "torch's hard sigmoid": node("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard swish": node("HardSwish"),
    "softmax": node("Softmax", axis=1),
    "dropout": node("Dropout"),
    "flatten": node("Flatten"),
    "flatten 2": node("Flatten", axis=2),
    "reshape": node("Reshape", {"s": np.array([0, 2, -1])}),
    "transpose": node("Transpose", perm=[0, 2, 3, 1]),
    "slice": node("Slice", {"a": [1, 0], "b": [100, -1], "c": [2, 3], "d": [2, 1]}),
    "gather": node("Gather", {"i": np.array(2)}, axis=1),
    "gather several": node("Gather", {"i": np.array([3, -1, 0])}, axis=2),
    "pad": node("Pad", {"p": [0, 1, 0, 2, 0, 0, 1, 1], "v": np.float32(0.5)}),
    "pad, reflect": node("Pad", {"p": [0, 0, 1, 2, 0, 0, 1, 1]}, mode="reflect"),
    "resize": node("Resize", {"": None, "s": np.float32([1, 1, 2, 3])}, mode="nearest",
                   coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "resize, linear": node("Resize", {"": None, "s": np.float32([1, 1, 1.5, 2])}, mode="linear"),
    "resize, early": node("Resize", {"s": np.float32([1, 1, 2, 3])}, opset=10),
    "reduce mean": node("ReduceMean", axes=[2, 3], keepdims=0),
    "reduce mean of all": node("ReduceMean", opset=18),
    "reduce mean of nothing": node("ReduceMean", opset=18, noop_with_empty_axes=1),
    "squeeze by no axes": ([helper.make_node("GlobalMaxPool", ["x"], ["m"]),
                            helper.make_node("Squeeze", ["m", "a"], ["y"])],
                           {"a": np.array([], np.int64)}, 17),
    "attributes at their defaults": node("Selu", alpha=1.6732632423543772, gamma=1.05070102214813),
    **{op.lower(): node(op) for op in ("Relu", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Abs",
                                       "Neg", "Erf", "Exp", "Identity")},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operator(case: str, tmp_path: Path) -> None:
    nodes, constants, opset = CASES[case]
    check(model_of(nodes, IMAGE, constants, opset), tmp_path)


def test_a_constant_may_add_channels(tmp_path: Path) -> None:
    nodes, constants, opset = node("Mul", {"c": f32(3, 1, 1)})
    module = check(model_of(nodes, (1, 1, 5, 6), constants, opset), tmp_path, (1, 1, 5, 6))
    x = torch.randn(1, 1, 5, 6)
    quantized = fxquant.quantize(module, [x], progress=False)
    torch.testing.assert_close(quantized(x), module(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (4, 5), (4, 1)], ids=str)
def test_biases_of_gemm(shape: tuple[int, ...], tmp_path: Path) -> None:
    constants = {"w": f32(3, 5), "b": np.asarray(f32(*shape))}
    nodes, constants, opset = node("Gemm", constants, alpha=0.5, beta=2.0)
    check(model_of(nodes, (4, 3), constants, opset), tmp_path, (4, 3))


REFUSED = {
    "antialias = 1": node("Resize", {"": None, "s": np.float32([1, 1, 2, 2])}, opset=18,
                          mode="linear", antialias=1),
    "keep_aspect_ratio_policy = not_larger": node(
        "Resize", {"": None, " ": np.float32([]), "s": np.array([2, 4, 14, 14])}, opset=18,
        mode="linear", keep_aspect_ratio_policy="not_larger"),
    "pytorch_half_pixel": node("Resize", {"": None, "s": np.float32([1, 1, 1 / 7, 1])},
                               mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    "chosen axes": node("Resize", {"": None, "s": np.float32([2, 2])}, opset=18, axes=[2, 3]),
    "coordinates asymmetric": node("Resize", {"": None, "s": np.float32([1, 1, 2.1, 1])},
                                   coordinate_transformation_mode="asymmetric",
                                   nearest_mode="floor"),
    "gamma = 2": node("Selu", gamma=2.0),
    "axis = 1": node("Add", {"c": f32(4)}, opset=6, broadcast=1, axis=1),
    "training mode": node("Dropout", {"r": np.float32(0.5), "t": np.array(True)}),
    "last window": node("MaxPool", kernel_shape=[5, 5], pads=[3, 3, 3, 3], strides=[3, 3],
                        ceil_mode=1),
    "ValueError": node("Gemm", {"w": f32(9, 5), "b": f32(4)}),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_forms_that_are_not_imported(why: str, tmp_path: Path) -> None:
    nodes, constants, opset = REFUSED[why]
    onnx.save(model_of(nodes, IMAGE, constants, opset), str(tmp_path / "net.onnx"))
    with pytest.raises(UnsupportedError, match="cannot be imported") as error:
        import_onnx(tmp_path / "net.onnx")
    assert error.value.where == "ONNX node y" and why in error.value.why


@pytest.mark.parametrize("entry", [z for z in ZOO if len(z.shapes) == 1], ids=str)
def test_a_float_network_goes_out_and_comes_back(entry: ZooModel, tmp_path: Path) -> None:
    data = [entry.inputs()]
    plain = fxquant.quantize(entry.make(), data, data[0], fxquant.Config(None), progress=False)
    (tmp_path / "net.onnx").write_bytes(qdq_model(plain))
    module = import_onnx(tmp_path / "net.onnx").module
    torch.testing.assert_close(module(*data[0]), entry.make()(*data[0]), atol=1e-4, rtol=1e-4)


def test_layers_have_the_paths_of_their_weights_and_the_shapes_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stem.0.weight"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["d"]),
        helper.make_node("Gemm", ["d", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    constants = {
        "stem.0.weight": f32(6, 3, 3, 3), "zero": np.array(0), "axis": np.array([0]),
        "rest": np.array([-1]), "fc.weight": f32(5, 6), "fc.bias": f32(5),
    }  # fmt: skip
    model = model_of(nodes, ("batch", 3, 8, 8), constants)
    module = check(model, tmp_path, (1, 3, 8, 8))
    network = import_onnx(tmp_path / "net.onnx")
    assert network.inputs == {"x": (1, 3, 8, 8)}
    assert {"stem.0", "fc"} <= dict(module.named_modules()).keys()
    config = fxquant.W4A8.with_rules(names={"stem.0": None})
    quantized = fxquant.quantize(module, [torch.randn(1, 3, 8, 8)], config=config, progress=False)
    assert [i.module for i in quantized.float_islands] == ["stem.0"]
    assert "silu" in str(quantized)


def test_tokens(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Split", ["c"], ["d", "e"], axis=2),
        helper.make_node("Concat", ["e", "d"], ["y"], axis=2),
    ]
    module = check(
        model_of(nodes, (2, 5, 3), {"w": f32(3, 4), "b": f32(4)}, 13), tmp_path, (2, 5, 3)
    )
    assert sum(n.op == "call_module" for n in module.graph.nodes) == 1


@pytest.mark.parametrize("second", ["p", "alias"])
def test_a_product_with_other_readers_stays_without_the_bias(second: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Identity", ["p"], ["alias"]),
        helper.make_node("Add", [second, "b"], ["q"]),
        helper.make_node("Mul", ["p", "q"], ["y"]),
    ]
    constants = {"w": f32(3, 4), "b": f32(4)}
    check(model_of(nodes, (2, 5, 3), constants), tmp_path, (2, 5, 3))
    nodes[-1] = helper.make_node("Identity", ["q"], ["y"])
    model = model_of(nodes, (2, 5, 3), constants)
    model.graph.output.append(helper.make_tensor_value_info("p", FLOAT, None))
    onnx.save(model, str(tmp_path / "net.onnx"))
    x = torch.randn(2, 5, 3)
    _, product = import_onnx(tmp_path / "net.onnx").module(x)
    torch.testing.assert_close(product, x @ torch.from_numpy(constants["w"]))


def test_operators_that_cannot_be_imported_are_all_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("TopK", ["a", "k"], ["y", "i"]),
    ]
    onnx.save(model_of(nodes, IMAGE, {"k": np.array([1])}), str(tmp_path / "net.onnx"))
    with pytest.raises(UnsupportedError, match="Sin, TopK"):
        import_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\xff" * 99, b"\x08\x07" * 50],
    ids="empty zip bytes numbers".split(),
)
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(FileFormatError):
        import_onnx(path)


def test_damaged_models_raise_the_one_error(tmp_path: Path) -> None:
    path, good = tmp_path / "net.onnx", _small_model()
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data[: rng.integers(1, len(data) + 1)]))
        with contextlib.suppress(fxquant.FxQuantError):
            import_onnx(path)


def _small_model() -> bytes:
    entry = BY_NAME["convbn_relu"]
    data = [entry.inputs()]
    plain = fxquant.quantize(entry.make(), data, data[0], fxquant.Config(None), progress=False)
    return qdq_model(plain)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_of_the_folder_is_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    model = model_of([helper.make_node("Add", ["x", "c"], ["y"])], (1, 4), {"c": f32(4)})
    (constant,) = model.graph.initializer
    constant.ClearField("raw_data")
    constant.data_location = onnx.TensorProto.EXTERNAL
    entry = constant.external_data.add()
    entry.key, entry.value = "location", location
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError):
        import_onnx(folder / "net.onnx")


def test_a_tensor_of_a_huge_size_without_data_is_refused(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Add", ["x", "c"], ["y"])], (1, 4), {"c": f32(4)})
    model.graph.initializer[0].dims[:] = [1 << 40]
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError):
        import_onnx(tmp_path / "net.onnx")
