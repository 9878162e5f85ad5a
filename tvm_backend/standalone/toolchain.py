"""The C toolchain of a target: the compiler and emulator its record names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fxquant.errors import TargetError
from fxquant.targets import Target
from tvm_backend.devices import same_architecture


def compiler_of(target: Target) -> str | None:
    """The C compiler, or None for a foreign target that names none.

    Raises:
        TargetError: It is not installed.
    """
    name = target.compiler or ("cc" if same_architecture(target) else "")
    return _installed(name, target) if name else None


def emulator_of(target: Target) -> list[str]:
    """Command that runs a program of the target; empty if this machine runs it itself.

    Raises:
        TargetError: It is not installed, or the target is foreign and names none.
    """
    if target.emulator:
        return [_installed(target.emulator, target), "-cpu", "max"]
    if same_architecture(target):
        return []
    raise TargetError(
        f"programs for {target} cannot run here",
        why="it names no emulator and is of another architecture",
        remedy="name one in the Target, e.g. emulator='qemu-riscv64'",
    )


def compiler_version(compiler: str) -> str:
    """What a compiler says about itself."""
    return run([compiler, "--version"], Path.cwd()).splitlines()[0]


def run(command: list[str], folder: Path) -> str:
    """Run a tool in a folder; returns what it prints.

    Raises:
        TargetError: It fails.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise TargetError(f"{command[0]} cannot be run", why=str(error)) from error
    if done.returncode:
        raise TargetError(
            f"{command[0]} failed with exit status {done.returncode}",
            where=" ".join(command),
            why=done.stderr.strip()[:1000],
            remedy="check emulator and C compiler of the target",
        )
    return done.stdout


def _installed(name: str, target: Target) -> str:
    if shutil.which(name) is None:
        raise TargetError(
            f"{name} is not installed",
            why=f"target {target} needs it",
            remedy=f"install {name}, e.g. with the system's package manager",
        )
    return name
