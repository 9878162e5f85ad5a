"""`manifest.json` of a standalone library: what is in it, how large, made by what."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fxquant.version import __version__
from tvm_backend.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    STANDALONE,
    digest,
    encode_spec,
    encode_target,
)
from tvm_backend.memory_plan import Lifetime
from tvm_backend.program import Program
from tvm_backend.standalone.driver import Model, kernel_symbol
from tvm_backend.standalone.elf import section_sizes
from tvm_backend.standalone.tensors import Tensor
from tvm_backend.tvm_api import tvm


def write_manifest(
    folder: Path, name: str, model: Model, values: list[Lifetime], files: list[str],
    undefined: list[str], compiler: str | None,
) -> None:  # fmt: skip
    """Write the file.

    Args:
        folder: The library's folder.
        name: The library's name.
        model: Its contents.
        values: What the memory plan placed.
        files: Everything written, relative to the folder.
        undefined: Symbols it needs from others.
        compiler: Version of the C compiler; None if there was none.
    """
    program = model.program
    record = {
        "format_version": FORMAT_VERSION,
        "form": STANDALONE,
        "name": name,
        "target": encode_target(program.target),
        "versions": _versions(compiler),
        "inputs": [_tensor(t) for t in model.tensors.inputs],
        "outputs": [_tensor(t) for t in model.tensors.outputs],
        "kernels": _kernels(name, program),
        "steps": [step.outputs[0] for step in program.steps],
        "memory": {
            "arena_bytes": model.plan.nbytes,
            "lower_bound_bytes": model.plan.lower_bound,
            "values": [{**asdict(v), "offset": model.plan.offsets[v.name]} for v in values],
        },
        "weights": {
            "bytes": model.weights.data.size,
            "codes": sum(layer.codes for layer in model.weights.layers),
            "kernel_codes": sum(layer.kernel_codes for layer in model.weights.layers),
            "layers": [asdict(layer) for layer in model.weights.layers],
        },
        "undefined_symbols": undefined,
        "sections": {
            file: asdict(section_sizes(folder / file))
            for file in files
            if file.endswith((".o", ".a", ".so"))
        },
        "sha256": {file: digest(folder / file) for file in files},
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n")


def _versions(compiler: str | None) -> dict[str, Any]:
    return {
        "fxquant": __version__,
        "tvm": str(tvm.__version__),
        "llvm": int(tvm.get_global_func("target.llvm_version_major")()),
        "torch": str(torch.__version__),
        "compiler": compiler,
    }


def _kernels(name: str, program: Program) -> list[dict[str, Any]]:
    return [
        {"symbol": kernel_symbol(name, kernel), "calls": calls, "mac": kernel.rpartition("__")[2]}
        for kernel, calls in program.kernel_counts.items()
    ]


def _tensor(tensor: Tensor) -> dict[str, Any]:
    record: dict[str, Any] = {**encode_spec(tensor.spec), "quantized_dtype": tensor.quantized}
    border = tensor.border
    if border is not None:
        record["scale"] = [float(s) for s in border.scale]
        record["channel_stride"] = border.stride
        record["zero_point"] = border.zero_point
    return record
