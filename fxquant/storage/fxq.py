"""Writing and reading `.fxq` files. No pickle; nothing in a file is executed.

A file is safetensors with one metadata entry `fxquant`: JSON with the format version, the nodes
of the calibrated graph in order, notes and provenance. Weight codes are stored packed at their
width, per-axis scales and other tensors as they are. The Q/DQ and INTEGER graphs are derived
again after loading, so there is one truth.
"""

from __future__ import annotations

import json
import math
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fxquant.errors import FileFormatError
from fxquant.ir import meta
from fxquant.ir.build import finish, infer_shape
from fxquant.ir.meta import Provenance, TensorQuant
from fxquant.ir.stages import Stage, verify
from fxquant.model import Quantized
from fxquant.numerics.packing import pack_codes, packed_size, unpack_codes
from fxquant.numerics.types import PerAxis, QParams, activation_spec, weight_spec
from fxquant.storage.bounds import check_indices
from fxquant.storage.targets import name_of, resolve
from fxquant.storage.values import (
    decode,
    decode_dtype,
    decode_shape,
    decode_spec,
    encode,
    encode_dtype,
    encode_spec,
)

VERSION = 1
_KEY = "fxquant"


def save(quantized: Quantized, path: str | Path) -> None:
    """Write a quantized network; the same network gives the same bytes. Missing folders are made.

    Raises:
        UnsupportedError: A float operator or argument has no storable form.
    """
    tensors: dict[str, Tensor] = {}
    gm = quantized.calibrated
    document = {
        "version": VERSION,
        "nodes": [_encode_node(gm, node, tensors) for node in gm.graph.nodes],
        "notes": quantized.notes,
        "provenance": quantized.provenance,
        "batch": quantized.batch,
    }
    text = json.dumps(document, allow_nan=False)  # keys in their order: it is that of results
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), {_KEY: text})


def _encode_node(gm: GraphModule, node: Node, tensors: dict[str, Tensor]) -> dict[str, Any]:
    record: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op.startswith("call_"):
        record["target"] = name_of(node.target, node.op, meta.place(node))
    if node.op == "get_attr":
        tensors[node.name] = _encode_tensor(gm, node)
    elif node.op != "placeholder":
        record["args"], record["kwargs"] = encode(list(node.args)), encode(dict(node.kwargs))
    if "shape" in node.meta:
        record["shape"] = list(meta.shape_of(node))
        record["dtype"] = encode_dtype(meta.dtype_of(node))
    reason = meta.float_reason(node)
    if reason is not None:
        record["float_reason"] = reason
    if meta.delivers_float(node):
        record["delivers_float"] = True
    origin = meta.provenance(node)
    record["provenance"] = [list(origin.modules), list(origin.kinds)]
    value = meta.quant(node)
    if value is not None:
        record["quant"] = _encode_quant(node, value, tensors)
    factors = meta.channel_factors(node)
    if factors is not None:
        tensors[f"{node.name}.factors"] = factors.contiguous()
    return record


def _encode_tensor(gm: GraphModule, node: Node) -> Tensor:
    tensor, value = meta.tensor_of(gm, node).detach().contiguous(), meta.quant(node)
    if value is None:
        return tensor
    return torch.from_numpy(pack_codes(tensor.numpy(), value.spec.dtype.bits))


def _encode_quant(node: Node, value: TensorQuant, tensors: dict[str, Tensor]) -> dict[str, Any]:
    qparams = meta.qparams(node)
    record: dict[str, Any] = {"spec": encode_spec(value.spec), "origin": value.origin}
    if qparams.axis is None:
        record["scale"], record["zero_point"] = float(qparams.scale), int(qparams.zero_point)
    else:
        tensors[f"{node.name}.scale"] = qparams.scale.contiguous()
    return record


def load(path: str | Path) -> Quantized:
    """Read a quantized network.

    Raises:
        FileFormatError: The file is missing, corrupt, truncated, hostile or of a newer version.
    """
    if not Path(path).is_file():
        raise FileFormatError(f"{path} is not a file", remedy="check the path")
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise FileFormatError(
                    "the file is safetensors, but not of fxquant", where=str(path)
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _decode(_parsed(text), tensors)
    except FileFormatError:
        raise
    except Exception as error:  # torch and safetensors raise whatever their parts raise
        raise FileFormatError(
            f"cannot read the file: {type(error).__name__}: {str(error)[:300]}",
            where=str(path),
            why="it is no .fxq file, or it is corrupt or truncated",
            remedy="save the model again with quantized.save(path)",
        ) from error


def _parsed(text: str) -> Any:
    """JSON without the numbers that only Python's dialect has."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FileFormatError(f"the file has the number {text[:40]}")
    return value


def _decode(document: Any, tensors: dict[str, Tensor]) -> Quantized:
    if not isinstance(document, dict) or not isinstance(document.get("version"), int):
        raise FileFormatError("the file has no format version")
    if document["version"] > VERSION:
        raise FileFormatError(
            f"the file has format version {document['version']}",
            why=f"this release of fxquant reads versions up to {VERSION}",
            remedy="upgrade fxquant",
        )
    root, graph, nodes = torch.nn.Module(), Graph(), {}
    for record in document["nodes"]:
        node = _decode_node(record, graph, nodes, root, tensors)
        nodes[node.name] = node
    gm = finish(root, graph)
    for node in gm.graph.nodes:
        check_indices(node)
    verify(gm, Stage.CALIBRATED)
    notes, provenance = document["notes"], document["provenance"]
    if not isinstance(notes, dict) or not isinstance(provenance, dict):
        raise FileFormatError("notes and provenance of the file are no mappings")
    batch = document["batch"]
    if batch is not None and (type(batch) is not int or batch < 1):
        raise FileFormatError(f"the file has an impossible batch size {batch!r}")
    return Quantized(gm, {str(k): str(v) for k, v in notes.items()}, provenance, batch)


def _decode_node(
    record: dict[str, Any],
    graph: Graph,
    nodes: dict[str, Node],
    root: torch.nn.Module,
    tensors: dict[str, Tensor],
) -> Node:
    name, op = record["name"], record["op"]
    if not isinstance(name, str) or not name.isidentifier() or name in nodes:
        raise FileFormatError(f"the file has an invalid or repeated node name {str(name)[:60]!r}")
    if op == "placeholder":
        node = graph.placeholder(name)
    elif op == "output":
        node = graph.output(decode(record["args"], nodes)[0])
    elif op == "get_attr":
        root.register_buffer(name, _decode_tensor(record, tensors))
        node = graph.get_attr(name)
    else:
        kind, target = resolve(record["target"])
        args, kwargs = decode(record["args"], nodes), decode(record["kwargs"], nodes)
        _check_keywords(kwargs, name)
        node = graph.create_node(kind, target, tuple(args), kwargs, name)
    if node.name != name:
        raise FileFormatError(f"the file has a node name that cannot be used: {name!r}")
    _decode_meta(record, node, tensors)
    return node


def _check_keywords(kwargs: Any, name: str) -> None:
    """Keywords become source code of the GraphModule, so they must be plain names."""
    if not isinstance(kwargs, dict) or not all(
        isinstance(k, str) and k.isidentifier() and not iskeyword(k) for k in kwargs
    ):
        raise FileFormatError(f"node {name} has impossible keyword arguments")


def _decode_meta(record: dict[str, Any], node: Node, tensors: dict[str, Tensor]) -> None:
    if "shape" in record:
        shape, dtype = decode_shape(record["shape"]), decode_dtype(record["dtype"])
        meta.set_value(node, shape, dtype)
        if str(record.get("target", "")).startswith("op:"):
            infer_shape(node)
            if meta.shape_of(node) != shape:
                raise FileFormatError(f"node {node.name} has shape {meta.shape_of(node)}, the file "
                                      f"says {shape}")  # fmt: skip
            meta.set_value(node, shape, dtype)
    if "float_reason" in record:
        meta.set_float_reason(node, str(record["float_reason"]))
    if record.get("delivers_float") is True:
        meta.set_delivers_float(node)
    modules, kinds = record["provenance"]
    meta.set_provenance(node, Provenance(tuple(map(str, modules)), tuple(map(str, kinds))))
    if "quant" in record:
        meta.set_quant(node, _decode_quant(record["quant"], node.name, tensors))
    if f"{node.name}.factors" in tensors:
        meta.set_channel_factors(node, _decode_factors(node, tensors[f"{node.name}.factors"]))


def _decode_quant(record: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> TensorQuant:
    spec = decode_spec(record["spec"])
    weight = isinstance(spec.granularity, PerAxis)
    if spec != (weight_spec if weight else activation_spec)(spec.dtype.bits) or (
        weight and spec.dtype.bits > 8
    ):
        raise FileFormatError(f"{name} has a grid that no operator takes: {spec.dtype}")
    if weight:
        scale = tensors[f"{name}.scale"]
        zero_point = torch.zeros(scale.shape, dtype=torch.int32)
    else:
        scale = torch.tensor(record["scale"], dtype=torch.float32)
        zero_point = torch.tensor(record["zero_point"], dtype=torch.int32)
    return TensorQuant(spec, QParams(spec, scale, zero_point), str(record["origin"]))


def _decode_factors(node: Node, factors: Tensor) -> Tensor:
    shape = meta.shape_of(node)
    fits = factors.ndim == len(shape) and all(
        n in (1, size) for n, size in zip(factors.shape, shape, strict=True)
    )
    positive = factors.dtype == torch.float32 and bool(
        (torch.isfinite(factors) & (factors > 0)).all()
    )
    if not fits or not positive:
        raise FileFormatError(f"the channel factors of {node.name} make no sense")
    return factors


def _decode_tensor(record: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    name = record["name"]
    tensor, shape = tensors[name], decode_shape(record["shape"])
    if "quant" not in record:
        if tuple(tensor.shape) != shape or tensor.dtype != decode_dtype(record["dtype"]):
            raise FileFormatError(f"tensor {name} is not of the recorded shape and dtype")
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(f"tensor {name} contains NaN or infinite values")
        return tensor
    spec = decode_spec(record["quant"]["spec"])
    count = int(torch.Size(shape).numel())
    if tensor.dtype != torch.uint8 or tensor.numel() != packed_size(count, spec.dtype.bits):
        raise FileFormatError(f"the codes of {name} do not fill its shape {shape}")
    if tuple(tensors[f"{name}.scale"].shape) != shape[:1]:
        raise FileFormatError(f"the scales of {name} do not match its shape {shape}")
    codes = unpack_codes(tensor.numpy(), spec.dtype.bits, shape)
    if codes.size and int(np.min(codes)) < spec.dtype.qmin:
        raise FileFormatError(f"tensor {name} has codes outside of its type {spec.dtype}")
    return torch.from_numpy(codes)
