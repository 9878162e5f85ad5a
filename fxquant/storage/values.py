"""Static arguments and grids as JSON, and back with every value checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from fxquant.errors import FileFormatError, UnsupportedError
from fxquant.numerics.types import IntType, PerAxis, PerTensor, QuantSpec

_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8,
    torch.int16, torch.int32, torch.int64, torch.bool,
)}  # fmt: skip


def encode(value: Any) -> Any:
    """A node argument as JSON; nodes by name.

    Raises:
        UnsupportedError: The argument's type has no JSON form.
    """
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, slice):
        return {"slice": [encode(v) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"dict": {_key(k): encode(v) for k, v in value.items()}}
    raise UnsupportedError(
        f"an argument of type {type(value).__name__} cannot be stored",
        remedy="use numbers, strings and tuples",
    )


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise UnsupportedError(
            f"a dict with the key {key!r} cannot be stored",
            why="files have strings as keys",
            remedy="let the model return strings as keys, or a tuple",
        )
    return key


def decode(value: Any, nodes: Mapping[str, Node]) -> Any:
    """Inverse of `encode`.

    Raises:
        FileFormatError: The JSON is not what `encode` writes.
    """
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(kind, content)] = value.items()
        match kind, content:
            case "node", str() if content in nodes:
                return nodes[content]
            case "tuple", list():
                return tuple(decode(v, nodes) for v in content)
            case "slice", [start, stop, step]:
                return slice(*(decode(v, nodes) for v in (start, stop, step)))
            case "float", "inf" | "-inf" | "nan":
                return float(content)
            case "dtype", str() if content in _DTYPES:
                return _DTYPES[content]
            case "dict", dict():
                return {k: decode(v, nodes) for k, v in content.items()}
    raise FileFormatError(f"the file has an argument that makes no sense: {str(value)[:80]}")


def encode_spec(spec: QuantSpec) -> dict[str, Any]:
    """A QuantSpec as JSON."""
    axis = spec.granularity.axis if isinstance(spec.granularity, PerAxis) else None
    dtype = spec.dtype
    return {"bits": dtype.bits, "signed": dtype.signed, "narrow": dtype.narrow, "axis": axis,
            "symmetric": spec.symmetric}  # fmt: skip


def decode_spec(value: Mapping[str, Any]) -> QuantSpec:
    """Inverse of `encode_spec`."""
    axis = value["axis"]
    dtype = IntType(int(value["bits"]), bool(value["signed"]), bool(value["narrow"]))
    granularity = PerTensor() if axis is None else PerAxis(int(axis))
    return QuantSpec(dtype, granularity, bool(value["symmetric"]))


def encode_dtype(dtype: torch.dtype) -> str:
    """A dtype by name."""
    return str(dtype).removeprefix("torch.")


def decode_dtype(name: Any) -> torch.dtype:
    """Inverse of `encode_dtype`."""
    if name not in _DTYPES:
        raise FileFormatError(f"the file names an unknown dtype {name!r}")
    return _DTYPES[name]


def decode_shape(value: Any) -> tuple[int, ...]:
    """A shape of sane sizes."""
    good = isinstance(value, list) and len(value) <= 8
    if not good or not all(type(v) is int and 0 <= v < 1 << 31 for v in value):
        raise FileFormatError(f"the file has an impossible shape {str(value)[:80]}")
    return tuple(value)
