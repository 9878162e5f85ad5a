"""Compiled networks on disk: `net.so` and `manifest.json`.

A shared library is code: the digest in the manifest finds damage, not malice. Only load what you
trust.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fxquant.errors import TargetError
from fxquant.targets import Target
from tvm_backend.devices import missing_features
from tvm_backend.manifest import LIBRARY, Manifest, Summary, damaged, digest, remove_exported
from tvm_backend.quiet import quiet
from tvm_backend.signature import Signature
from tvm_backend.tvm_api import load_module, tvm


def write(
    folder: Path, executable: Any, target: Target, signature: Signature, summary: Summary
) -> Path:
    """Write a compiled network.

    Args:
        folder: Where to; made if absent.
        executable: Relax executable.
        target: Its device.
        signature: Its inputs and outputs.
        summary: Its kernels and memory.

    Raises:
        TargetError: The target's compiler is absent or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_exported(folder)
    library = folder / LIBRARY
    compiler = target.compiler
    arguments = {"fcompile": tvm.support.cc.cross_compiler(compiler)} if compiler else {}
    try:
        with quiet():
            executable.export_library(str(library), **arguments)
    except (RuntimeError, OSError) as error:
        raise TargetError(
            f"linking {library} failed",
            why=str(error).strip()[-1000:],
            remedy=f"install {compiler or 'a C++ compiler'}",
        ) from error
    Manifest(target, signature, summary, digest(library)).write(folder)
    return folder


def read(folder: Path) -> tuple[Manifest, Any]:
    """Read an exported network: its manifest, and its module if this machine can run it.

    Raises:
        FileFormatError: A file is absent, damaged or of a newer version.
    """
    manifest = Manifest.read(folder)
    library = folder / LIBRARY
    if not library.is_file():
        raise damaged(library, "the file is absent")
    if digest(library) != manifest.digest:
        raise damaged(library, "its digest differs from the manifest's")
    if missing_features(manifest.target):
        return manifest, None
    try:
        with quiet():
            return manifest, _load(library)
    except (RuntimeError, OSError) as error:
        raise damaged(library, str(error).strip()[-500:]) from error


def _load(library: Path) -> Any:
    """Load a library by a name of its own: of a known name the system returns what it has loaded.

    That may be what lay there before another export into the folder.
    """
    with tempfile.TemporaryDirectory(prefix="fxquant-") as folder:
        link = Path(folder, LIBRARY)
        link.symlink_to(library.resolve())
        return load_module(str(link))
