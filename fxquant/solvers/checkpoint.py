"""Solved units on disk, so that a run that was interrupted continues in another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.errors import FileFormatError, NumericsError
from fxquant.ir import meta
from fxquant.numerics.types import QParams, QTensor
from fxquant.solvers.base import Solver
from fxquant.solvers.state import Record

_FORMAT = "fxquant-checkpoint-1"


def fingerprint(
    gm: GraphModule, samples: Sequence[Tensor], steps: Sequence[Solver], seed: int
) -> str:
    """What a checkpoint belongs to: float weights, grids, samples, solvers and seed, as a hash."""
    digest = hashlib.sha256(repr((tuple(steps), seed)).encode())
    for node in gm.graph.nodes:
        quant = meta.quant(node)
        digest.update(f"{node.name} {node.target} {quant and quant.spec}".encode())
        if quant is not None and quant.qparams is not None:
            digest.update(quant.qparams.scale.cpu().numpy().tobytes())
        if node.op == "get_attr":
            digest.update(_bytes(meta.tensor_of(gm, node)))
    for sample in samples:
        digest.update(_bytes(sample))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


class Checkpoint:
    """A directory with one file a solved unit.

    Args:
        directory: Made if it does not exist.
        owner: From `fingerprint`.

    Raises:
        FileFormatError: The directory belongs to another run.
    """

    def __init__(self, directory: str | Path, owner: str) -> None:
        self.directory, self.owner = Path(directory), owner
        if self.directory.exists() and not self.directory.is_dir():
            raise FileFormatError(f"{directory} is no directory", remedy="name another one")
        self.directory.mkdir(parents=True, exist_ok=True)

    def load(self, gm: GraphModule) -> dict[str, Record]:
        """The units solved so far."""
        records: dict[str, Record] = {}
        for path in sorted(self.directory.glob("unit-*.safetensors")):
            key, record = self._read(path, gm)
            records[key] = record
        return records

    def add(self, key: str, record: Record) -> None:
        """Keep a solved unit; the file appears at once or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, weight in record.weights.items():
            tensors[f"codes/{name}"] = weight.codes.contiguous()
            tensors[f"scale/{name}"] = weight.qparams.scale.contiguous()
        for name, bias in record.biases.items():
            tensors[f"bias/{name}"] = bias.contiguous()
        for name, grid in record.grids.items():
            tensors[f"grid/{name}"] = grid.scale.reshape(1).contiguous()
            tensors[f"zero/{name}"] = grid.zero_point.reshape(1).contiguous()
        about = {"format": _FORMAT, "owner": self.owner, "key": key}
        about |= {"losses": json.dumps(record.losses), "notes": json.dumps(record.notes)}
        number = hashlib.sha256(key.encode()).hexdigest()[:16]
        final = self.directory / f"unit-{number}.safetensors"
        partial = final.with_suffix(".partial")
        save_file(tensors, partial, metadata=about)
        partial.replace(final)

    def _read(self, path: Path, gm: GraphModule) -> tuple[str, Record]:
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        if about.get("format") != _FORMAT or about.get("owner") != self.owner:
            raise FileFormatError(
                "the checkpoint belongs to another run",
                where=str(path),
                why="its model, data, configuration, solvers or seed differ",
                remedy="name another directory, or delete this one",
            )
        try:
            return about["key"], _record(about, tensors, gm)
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError,
                NumericsError) as error:  # fmt: skip
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path.name} cannot be read: {str(error)[:300]}",
        where=str(path),
        remedy="delete the file: its unit is solved again",
    )


def _record(about: dict[str, str], tensors: dict[str, Tensor], gm: GraphModule) -> Record:
    """The contents of a file, checked against the graph."""
    nodes = {n.name: n for n in gm.graph.nodes}
    specs = {name: q.spec for name, n in nodes.items() if (q := meta.quant(n)) is not None}
    record = Record(
        losses={k: tuple(map(float, v)) for k, v in json.loads(about["losses"]).items()},
        notes={k: str(v) for k, v in json.loads(about["notes"]).items()},
    )
    for full, tensor in tensors.items():
        kind, name = full.split("/", 1)
        if kind == "codes":
            scale, spec = tensors[f"scale/{name}"], specs[name]
            _check(name, tensor, torch.int8, meta.shape_of(nodes[name]))
            _check(name, scale, torch.float32, tuple(tensor.shape[:1]))
            if tensor.numel() and not spec.dtype.qmin <= int(tensor.min()) <= spec.dtype.qmax:
                raise ValueError(f"codes of {name} outside of {spec.dtype}")
            zeros = torch.zeros(scale.shape, dtype=torch.int32)
            record.weights[name] = QTensor(tensor, QParams(spec, scale, zeros))
        elif kind == "bias":
            weight = nodes[name].args[1]
            if not isinstance(weight, Node):
                raise ValueError(f"{name} has no weight")
            _check(name, tensor, torch.float32, meta.shape_of(weight)[:1])
            record.biases[name] = tensor
        elif kind == "grid":
            zero_point = tensors[f"zero/{name}"]
            _check(name, tensor, torch.float32, (1,))
            _check(name, zero_point, torch.int32, (1,))
            record.grids[name] = QParams(specs[name], tensor.reshape(()), zero_point.reshape(()))
        elif kind not in ("scale", "zero"):
            raise ValueError(f"{full!r} is unknown")
    return record


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"the tensor of {name} is {tensor.dtype} {tuple(tensor.shape)}")
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"the tensor of {name} is not finite")
