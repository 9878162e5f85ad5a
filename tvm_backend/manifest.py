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
from tvm_backend.signature import Signature, TensorSpec

FORMAT_VERSION = 1
LIBRARY, MANIFEST = "net.so", "manifest.json"
_DTYPES = ("float32", "int32", "int64", "uint8", "uint16")


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What a compiled network consists of.

    Attributes:
        kernels: Calls of each kernel, by name.
        memory_bytes: Intermediate values after planning.
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
            "target": _encode_target(self.target),
            "inputs": [_encode_spec(spec) for spec in self.signature.inputs],
            "outputs": [_encode_spec(spec) for spec in self.signature.outputs],
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
        try:
            return Manifest(
                _decode_target(record["target"]),
                Signature(
                    tuple(_decode_spec(spec) for spec in record["inputs"]),
                    tuple(_decode_spec(spec) for spec in record["outputs"]),
                    _decode_tree(record["structure"]),
                ),
                Summary(
                    {str(name): int(count) for name, count in record["kernels"].items()},
                    int(record["memory_bytes"]),
                    int(record["weight_bytes"]),
                ),
                str(record["sha256"][LIBRARY]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, FxQuantError) as error:
            raise damaged(path, f"{type(error).__name__}: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path, why: str) -> FileFormatError:
    """The error for a file that cannot be used."""
    return FileFormatError(f"{path} cannot be used", why=why, remedy="export the network again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
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


def _encode_spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _decode_spec(record: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(d) for d in record["shape"])
    if record["dtype"] not in _DTYPES or min((*shape, 1)) < 1:
        raise ValueError(f"invalid tensor {record}")
    return TensorSpec(str(record["name"]), shape, record["dtype"])


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


def _encode_target(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "llvm": [[key, list(v) if isinstance(v, tuple) else v] for key, v in target.llvm],
        "mac": target.mac.name,
        "vector_bits": target.vector_bits,
        "requires": list(target.requires),
        "emulator": target.emulator,
        "compiler": target.compiler,
    }


def _decode_target(record: dict[str, Any]) -> Target:
    llvm = tuple((k, tuple(v) if isinstance(v, list) else str(v)) for k, v in record["llvm"])
    mac = next((m for m in idioms.ALL if m.name == record["mac"]), None)
    if mac is None:
        raise ValueError(f"unknown multiply-accumulate idiom {record['mac']!r}")
    requires = tuple(str(flag) for flag in record["requires"])
    return Target(
        str(record["name"]), llvm, mac, int(record["vector_bits"]), requires,
        str(record["emulator"]), str(record["compiler"]),
    )  # fmt: skip
