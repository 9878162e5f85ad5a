"""What an exported network says about itself: `manifest.json` beside `net.so`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxquant.errors import FileFormatError, FxQuantError
from fxquant.targets import Target, idioms
from tvm_backend.program import leaves
from tvm_backend.signature import Signature, TensorSpec

FORMAT_VERSION = 1
LIBRARY, MANIFEST = "net.so", "manifest.json"
RELAX, STANDALONE = "relax", "standalone"  # forms of an exported network
_LARGEST_FILE = 16 << 20  # bytes
_LARGEST_RANK, _LARGEST_SIZE = 8, 1 << 31
_DTYPES = ("float32", "int32", "int64", "uint8", "uint16")


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What a compiled network consists of.

    Attributes:
        kernels: Calls of each kernel, by name.
        memory_bytes: Intermediate values after planning, and the largest workspace of a kernel.
        weight_bytes: Weights, biases, tables.
    """

    kernels: Mapping[str, int]
    memory_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """Contents of the file.

    Attributes:
        target: The device.
        signature: Inputs and outputs.
        summary: Kernels and memory.
        digest: SHA-256 of the library.
    """

    target: Target
    signature: Signature
    summary: Summary
    digest: str

    def write(self, folder: Path) -> None:
        """Write the file."""
        record = {
            "format_version": FORMAT_VERSION,
            "form": RELAX,
            "target": encode_target(self.target),
            "inputs": [encode_spec(spec) for spec in self.signature.inputs],
            "outputs": [encode_spec(spec) for spec in self.signature.outputs],
            "structure": _encode_tree(self.signature.structure),
            "kernels": dict(self.summary.kernels),
            "memory_bytes": self.summary.memory_bytes,
            "weight_bytes": self.summary.weight_bytes,
            "sha256": {LIBRARY: self.digest},
        }
        (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read and check the file.

        Raises:
            FileFormatError: It is absent, damaged or of a newer version.
        """
        path = folder / MANIFEST
        record = _read_json(path)
        if record.get("form", RELAX) != RELAX:
            raise FileFormatError(
                f"{folder} holds a {record['form']} library",
                why="it is for C programs; Python loads what export writes by default",
                remedy=f"export with form={RELAX!r}, or see the header in that folder",
            )
        try:
            return Manifest(
                decode_target(record["target"]),
                _decode_signature(record),
                Summary(
                    {str(name): _count(count) for name, count in record["kernels"].items()},
                    _count(record["memory_bytes"]),
                    _count(record["weight_bytes"]),
                ),
                str(record["sha256"][LIBRARY]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError,
                FxQuantError) as error:  # fmt: skip
            raise damaged(path, f"{type(error).__name__}: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_exported(folder: Path) -> None:
    """Remove what an earlier export wrote into a folder, unless it was changed since."""
    try:
        files = _read_json(folder / MANIFEST).get("sha256")
    except FileFormatError:
        return  # nothing says what was exported
    root = folder.resolve()
    for name, expected in files.items() if isinstance(files, dict) else ():
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_file() and digest(path) == expected:
            path.unlink()


def damaged(path: Path, why: str) -> FileFormatError:
    """The error for a file that cannot be used."""
    return FileFormatError(f"{path} cannot be used", why=why, remedy="export the network again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise damaged(path, f"it has {path.stat().st_size} bytes")
        record = json.loads(path.read_text())
    except OSError as error:
        raise damaged(path, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("format_version"), int):
        raise damaged(path, "it has no format version")
    if record["format_version"] > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {record['format_version']}",
            why=f"this program reads versions up to {FORMAT_VERSION}",
            remedy="update fxquant, or export the network again",
        )
    return record


def encode_spec(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as JSON values."""
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _decode_spec(record: dict[str, Any]) -> TensorSpec:
    shape = record["shape"]
    sizes = isinstance(shape, list) and len(shape) <= _LARGEST_RANK and all(
        type(d) is int and 1 <= d < _LARGEST_SIZE for d in shape
    )  # fmt: skip
    if record["dtype"] not in _DTYPES or not sizes:
        raise ValueError(f"invalid tensor {str(record)[:200]}")
    return TensorSpec(str(record["name"]), tuple(shape), record["dtype"])


def _decode_signature(record: dict[str, Any]) -> Signature:
    inputs, outputs = (tuple(map(_decode_spec, record[key])) for key in ("inputs", "outputs"))
    structure = _decode_tree(record["structure"])
    if len(leaves(structure)) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs, {len(leaves(structure))} places for them")
    return Signature(inputs, outputs, structure)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _encode_tree(tree: Any) -> dict[str, Any]:
    if isinstance(tree, tuple):
        return {"tuple": [_encode_tree(part) for part in tree]}
    if isinstance(tree, list):
        return {"list": [_encode_tree(part) for part in tree]}
    if isinstance(tree, dict):
        return {"dict": {key: _encode_tree(part) for key, part in tree.items()}}
    return {"value": tree} if isinstance(tree, str) else {"literal": tree}


def _decode_tree(record: dict[str, Any]) -> Any:
    ((kind, content),) = record.items()
    match kind:
        case "tuple":
            return tuple(_decode_tree(part) for part in content)
        case "list":
            return [_decode_tree(part) for part in content]
        case "dict":
            return {key: _decode_tree(part) for key, part in content.items()}
        case "value" | "literal":
            return content
        case _:
            raise ValueError(f"unknown container {kind!r}")


def encode_target(target: Target) -> dict[str, Any]:
    """A target as JSON values."""
    return {
        "name": target.name,
        "llvm": [[key, list(v) if isinstance(v, tuple) else v] for key, v in target.llvm],
        "mac": target.mac.name,
        "chains": [idiom.name for idiom in target.chains],
        "matrix": [idiom.name for idiom in target.matrix],
        "taps": [idiom.name for idiom in target.taps],
        "tiles": "" if target.tiles is None else target.tiles.name,
        "vector_bits": target.vector_bits,
        "half_width": target.half_width,
        "requires": list(target.requires),
        "emulator": target.emulator,
        "compiler": target.compiler,
    }


def decode_target(record: dict[str, Any]) -> Target:
    """The inverse of `encode_target`; what artefacts of earlier versions lack is empty."""
    llvm = tuple((k, tuple(v) if isinstance(v, list) else str(v)) for k, v in record["llvm"])
    known = {idiom.name: idiom for idiom in idioms.ALL}
    units = {"": None, **{unit.name: unit for unit in idioms.UNITS}}
    lists = [record["mac"]], record["chains"], record["matrix"], record.get("taps", [])
    groups = [[str(name) for name in names] for names in lists]
    unknown = [name for names in groups for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown multiply-accumulate idiom {unknown[0]!r}")
    tiles = str(record.get("tiles", ""))
    if tiles not in units:
        raise ValueError(f"unknown matrix unit {tiles!r}")
    (mac,), chains, matrix, taps = (tuple(known[name] for name in names) for names in groups)
    requires = tuple(str(flag) for flag in record["requires"])
    return Target(
        str(record["name"]), llvm, mac, int(record["vector_bits"]), requires,
        str(record["emulator"]), str(record["compiler"]), chains, matrix, taps,
        units[tiles], bool(record.get("half_width", False)),
    )  # fmt: skip
