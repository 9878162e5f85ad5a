"""The compiler, loaded when a command needs it: it is an optional part."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fxquant.cli.arguments import TARGETS
from fxquant.cli.models import read_quantized
from fxquant.cli.output import show_progress
from fxquant.errors import ConfigError
from fxquant.model import Quantized
from fxquant.targets import Target

HELP = "an .fxq file, or a folder that `fxquant compile` wrote"


def backend() -> Any:
    """The package `tvm_backend`.

    Raises:
        ConfigError: Apache TVM is not installed.
    """
    for package in ("tvm", "tvm_backend"):
        if find_spec(package) is None:
            raise ConfigError(
                f"compiling needs the package {package}", why="it is not installed",
                remedy='pip install "fxquant[tvm]"; `fxquant run --engine reference` needs it not',
            )  # fmt: skip
    import tvm_backend

    return tvm_backend


def target_of(quantized: Quantized, chosen: Target | None) -> Target:
    """The target asked for, else the one the network was quantized for, else this machine's."""
    named = TARGETS.get(str(quantized.provenance.get("target", "")))
    return chosen or named or backend().host_target()


def compiled(path: str, target: Target | None) -> Any:
    """A compiled network: a folder is loaded, an `.fxq` file compiled (for this machine).

    Raises:
        ConfigError: TVM is absent, or a target was given for a folder.
        FileFormatError: A file is missing or damaged.
    """
    tvm_backend = backend()
    if not Path(path).is_dir():
        return tvm_backend.compile(read_quantized(path), target, progress=show_progress())
    if target is not None:
        raise ConfigError(
            "a compiled network has its target already", remedy="leave --target out, or compile"
        )
    return tvm_backend.load(path)
