"""Run a network on inputs from files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.cli.arguments import target
from fxquant.cli.backend import HELP, backend, compiled
from fxquant.cli.data import check_floats, read_npy
from fxquant.cli.models import read_quantized
from fxquant.cli.output import Result, check_output
from fxquant.errors import ConfigError, FileFormatError
from fxquant.ir import meta
from fxquant.targets import Target

EXAMPLES = """\
  fxquant run net.fxq x.npy --output y.npy
  fxquant run net.fxq x.npy --engine reference --output y.npy
  fxquant run net.fxq x.bin --target cortex_a55 --output y.bin
  fxquant run build/net a.npy b.npy --output scores.npy boxes.npy
"""
ENGINES = ("compiled", "reference")
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help=HELP)
    parser.add_argument(
        "inputs", nargs="+", type=Path,
        help="one file an input: .npy, or .bin with raw float32 of the network's shape",
    )  # fmt: skip
    parser.add_argument(
        "--output", nargs="+", type=Path, default=[], metavar="FILE",
        help="one .npy or .bin file an output; without it a summary is printed",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0],
        help="the compiled kernels (default) or the integer reference",
    )  # fmt: skip
    parser.add_argument(
        "--target", type=target, metavar="NAME",
        help="compile for this device, and run under its emulator where this machine is another",
    )  # fmt: skip


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    if arguments.target is not None and arguments.engine != "compiled":
        raise ConfigError("the reference has no target", remedy="leave --target out")
    for path in arguments.output:
        check_output(path, ".npy", ".bin")
    function, shapes = _network(arguments.network, arguments.engine, arguments.target)
    if len(arguments.inputs) != len(shapes):
        raise ConfigError(f"{len(arguments.inputs)} inputs given, the network takes {len(shapes)}")
    inputs = [_read(p, s) for p, s in zip(arguments.inputs, shapes, strict=True)]
    outputs = leaves(function(*inputs))
    if arguments.output and len(arguments.output) != len(outputs):
        raise ConfigError(
            f"{len(arguments.output)} output files for {len(outputs)} outputs",
            remedy=f"name one file for each of: {', '.join(outputs)}",
        )
    files = dict(zip(outputs, arguments.output, strict=False))
    for name, path in files.items():
        _write(path, outputs[name].numpy())
    rows = [_summary(name, value, files.get(name)) for name, value in outputs.items()]
    lines = [
        f"{row['name']}: {row['dtype']} {'x'.join(map(str, row['shape']))}, "
        + (f"wrote {row['file']}" if row["file"] else _largest(row))
        for row in rows
    ]
    return Result({"outputs": rows}, "\n".join(lines))


def _network(path: str, engine: str, device: Target | None) -> tuple[Any, list[tuple[int, ...]]]:
    """What to call, and the shapes of its inputs."""
    if engine != "compiled":
        quantized = read_quantized(path)
        nodes = [n for n in quantized.calibrated.graph.nodes if n.op == "placeholder"]
        return quantized, [meta.shape_of(n) for n in nodes]
    network = compiled(path, device)
    shapes = [spec.shape for spec in network.signature.inputs]
    missing = backend().devices.missing_features(network.target)
    return (network.run_emulated if missing else network), shapes


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """An input; its first axis may be a multiple of the network's batch."""
    if path.suffix == ".npy":
        array = read_npy(path)
        check_floats(array, str(path))
        return torch.from_numpy(np.array(array, np.float32))
    if path.suffix != ".bin":
        raise ConfigError(f"{path} is no .npy or .bin file")
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file", remedy="check the path")
    sample = 4 * int(np.prod(shape[1:], dtype=object))
    size = path.stat().st_size
    if size == 0 or size % sample:
        raise FileFormatError(
            f"{path} has {size} bytes", why=f"a sample of shape {shape[1:]} has {sample}"
        )
    return torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, *shape[1:]))


def _write(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        array.tofile(path)


def leaves(value: Any, name: str = "output") -> dict[str, Tensor]:
    """The tensors of a nested result by name, in order: `output`, `output.scores.0`, ..."""
    if isinstance(value, Tensor):
        return {name: value.detach()}
    if not isinstance(value, Mapping | tuple | list):  # a number or None that forward() returns
        return {}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: dict[str, Tensor] = {}
    for key, part in items:
        found |= leaves(part, f"{name}.{key}")
    return found


def _summary(name: str, value: Tensor, file: Path | None) -> dict[str, Any]:
    first = value.flatten() if value.ndim < 2 else value[0].flatten()
    top = first.topk(min(_SHOWN, first.numel()))
    return {
        "name": name, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."),
        "file": file, "largest": dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
    }  # fmt: skip


def _largest(row: dict[str, Any]) -> str:
    pairs = ", ".join(f"[{i}] {v:.4g}" for i, v in row["largest"].items())
    return f"largest of the first sample: {pairs}"
