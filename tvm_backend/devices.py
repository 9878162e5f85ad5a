"""Targets as LLVM sees them, and whether this machine can run them."""

from __future__ import annotations

import ctypes
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

from fxquant import targets
from fxquant.errors import TargetError
from fxquant.targets import Target
from tvm_backend.tvm_api import last_line, tvm

_CPUINFO = Path("/proc/cpuinfo")
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@cache
def cpu_flags() -> frozenset[str]:
    """Feature flags of this machine's processor, empty where the system does not tell."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return frozenset()
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(lines[0].split()) if lines else frozenset()


@cache
def cpu_name() -> str:
    """Name of this machine's processor."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return platform.processor()
    names = re.findall(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return names[0].strip() if names else platform.processor()


def _machine() -> str:
    return _ARCHITECTURES.get(platform.machine().lower(), platform.machine())


def same_architecture(target: Target) -> bool:
    """Whether a target's triple, if it has one, names this machine's instruction set."""
    return target.triple.split("-")[0] in ("", _machine())


def missing_features(target: Target) -> tuple[str, ...]:
    """What this machine lacks to run a target; empty if it can run it."""
    if not same_architecture(target):
        architecture = target.triple.split("-")[0]
        return (f"the {architecture} instruction set (this machine is {_machine()})",)
    missing = tuple(flag for flag in target.requires if flag not in cpu_flags())
    if not missing and target.tiles is not None and not _may_use_tiles():
        return ("the operating system's permission to use AMX tiles",)
    return missing


@cache
def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers, which a process may use once it is permitted."""
    request, permit, tiles = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
    if platform.system() != "Linux":
        return False
    return ctypes.CDLL(None, use_errno=True).syscall(request, permit, tiles) == 0


def host_target() -> Target:
    """The known target with the widest multiply-accumulate that this machine can run.

    Among equals one made for this very processor, else the last of `targets.ALL`.
    """
    runnable = [(i, t) for i, t in enumerate(targets.ALL) if not missing_features(t)]

    def merit(choice: tuple[int, Target]) -> tuple[int, bool, int]:
        i, target = choice
        return target.mac.lanes * target.mac.reduction, target.processor == _processor(), i

    return max(runnable, key=merit)[1]


@cache
def _processor() -> str:
    """LLVM's name of this machine's processor."""
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())


def check_target(target: object) -> Target:
    """The target itself.

    Raises:
        TargetError: It is no Target, or LLVM does not know its triple or processor.
    """
    if not isinstance(target, Target):
        raise TargetError(
            f"{target!r} is no target",
            remedy="use a constant of fxquant.targets, e.g. fxquant.targets.X86_VNNI",
        )
    llvm_target(target)
    return target


@cache
def llvm_target(target: Target) -> Any:
    """The TVM target of a device record.

    Raises:
        TargetError: LLVM does not know its triple or processor.
    """
    options = {key: list(v) if isinstance(v, tuple) else v for key, v in target.llvm}
    _check_processor(target, str(options.get("mcpu", "")))
    try:
        return tvm.target.Target({"kind": "llvm", **options})
    except (ValueError, RuntimeError, TypeError) as error:
        raise TargetError(
            f"target {target.name!r} is unknown to LLVM",
            where=str(options),
            why=last_line(error),
            remedy="check mtriple, mcpu and mattr of the target",
        ) from error


def _check_processor(target: Target, processor: str) -> None:
    """Refuse what LLVM does not know before TVM asks for it: it would crash or guess."""
    known = {str(name) for name in tvm.get_global_func("target.llvm_get_targets")()}
    if target.triple and _llvm_architecture(target.triple) not in known:
        raise TargetError(
            f"target {target.name!r} is unknown to LLVM",
            where=f"mtriple {target.triple!r}",
            why="this build of TVM has no code generator for it",
            remedy=f"known architectures: {', '.join(sorted(known))}",
        )
    if not processor:
        return
    option = {"kind": "llvm", **({"mtriple": target.triple} if target.triple else {})}
    query = tvm.get_global_func("target.llvm_get_cpu_archlist")
    if processor not in {str(name) for name in query(tvm.target.Target(option))}:
        raise TargetError(
            f"target {target.name!r} names the processor {processor!r}",
            why=f"LLVM does not know it for {target.triple or 'this machine'}",
            remedy="check mcpu of the target",
        )


def _llvm_architecture(triple: str) -> str:
    """LLVM's name of a triple's architecture."""
    name = triple.split("-")[0]
    if name.startswith(("armv", "thumbv")):
        return "arm" if name.startswith("armv") else "thumb"
    return {"arm64": "aarch64", "amd64": "x86_64", "i686": "i386"}.get(name, name)
