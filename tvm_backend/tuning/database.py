"""The file of a search: what was measured and what was chosen, one JSON document a line.

The first line names format, target and machine; every other one is a problem:

    {"problem": "...", "default": "t1x6x2p__pmaddwd_256", "default_ns": 81234, "best": ...,
     "ratio": 0.93, "tried": {"t2x3x2p__pmaddwd_256": 0.94, ...}}

Ratios are times over that of the default schedule, measured in turn. `best` is null as long as the
problem is not decided; then the cost model's choice counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxquant.errors import ConfigError, FileFormatError
from fxquant.targets import Target
from tvm_backend.manifest import encode_target

FORMAT, VERSION = "fxquant-tuning", 1
_LARGEST_FILE = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """Where measurements come from; those of different machines do not mix.

    Attributes:
        cpu: Name of the processor.
        threads: Threads of parallel loops.
    """

    cpu: str
    threads: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about a problem.

    Attributes:
        problem: `Variants.problem`.
        default: The cost model's schedule.
        default_ns: Its median time in nanoseconds.
        best: The chosen schedule; None if the search was interrupted.
        ratio: Time of the chosen schedule over the default's.
        tried: Ratio of every schedule measured.
    """

    problem: str
    default: str
    default_ns: float
    best: str | None = None
    ratio: float = 1.0
    tried: Mapping[str, float] = field(default_factory=dict)


class Database:
    """The contents of a file.

    Args:
        path: The file.
        target: The device.
        machine: Where it is measured; None where nobody measures.
        entries: Problems.
    """

    def __init__(
        self,
        path: Path,
        target: Target,
        machine: Machine | None,
        entries: Mapping[str, Entry],
    ) -> None:
        self.path, self.target, self.machine = path, target, machine
        self.entries = dict(entries)

    @staticmethod
    def open(path: Path, target: Target, machine: Machine) -> Database:
        """The database to go on with, or a new one.

        Raises:
            FileFormatError: The file is damaged or of another version.
            ConfigError: It is for another target, or was measured on another machine.
        """
        if not path.exists():
            return Database(path, target, machine, {})
        database = Database.read(path, target)
        if database.machine != machine:
            raise ConfigError(
                f"{path} cannot be continued here",
                why=f"it was measured on {database.machine}, this is {machine}",
                remedy="choose another file; this one can still be compiled with",
            )
        return database

    @staticmethod
    def read(path: Path, target: Target) -> Database:
        """The database to compile with.

        Raises:
            FileFormatError: The file is absent, damaged or of another version.
            ConfigError: It is for another target.
        """
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise _damaged(path, 1, f"it has {path.stat().st_size} bytes")
            lines = path.read_text("utf-8").splitlines()
        except OSError as error:
            raise FileFormatError(
                f"{path} cannot be read", why=error.strerror or str(error),
                remedy="give the path of a file that tune wrote",
            ) from error  # fmt: skip
        except UnicodeDecodeError as error:
            raise _damaged(path, 1, str(error)) from error
        records = [_record(path, i, line) for i, line in enumerate(lines, 1)]
        machine = _check_head(path, records[0] if records else {}, target)
        entries = {}
        for i, record in enumerate(records[1:], 2):
            try:
                entry = _decode(record)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise _damaged(path, i, f"{type(error).__name__}: {error}") from error
            entries[entry.problem] = entry
        return Database(path, target, machine, entries)

    def put(self, entry: Entry) -> None:
        """Add or replace a problem, and write the file: the old one, or all of the new one."""
        self.entries[entry.problem] = entry
        assert self.machine is not None
        head = {
            "format": FORMAT, "version": VERSION, "target": encode_target(self.target),
            **asdict(self.machine),
        }  # fmt: skip
        lines = [json.dumps(record) for record in (head, *map(asdict, self.entries.values()))]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text("\n".join(lines) + "\n", "utf-8")
        os.replace(part, self.path)


def _damaged(path: Path, line: int, why: str) -> FileFormatError:
    return FileFormatError(
        f"{path} is no file of tuned schedules", where=f"line {line}", why=why,
        remedy="choose a file that tune wrote, or tune again",
    )  # fmt: skip


def _record(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, line, f"it is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise _damaged(path, line, "it is no JSON object")
    return record


def _check_head(path: Path, head: Mapping[str, Any], target: Target) -> Machine:
    """The machine, if format, version and target fit."""
    if head.get("format") != FORMAT:
        raise _damaged(path, 1, f"it does not start with the format {FORMAT!r}")
    version = head.get("version")
    if type(version) is not int or version != VERSION:
        raise FileFormatError(
            f"{path} has format version {version}",
            why=f"this program reads version {VERSION}", remedy="tune again into another file",
        )  # fmt: skip
    if head.get("target") != encode_target(target):
        named = head.get("target")
        name = named.get("name") if isinstance(named, dict) else named
        raise ConfigError(
            f"{path} holds schedules for another target",
            why=f"they were measured for {name!r}, this is {target.name!r}, or its options differ",
            remedy="compile for that target, or tune for this one into another file",
        )
    cpu, threads = head.get("cpu"), head.get("threads")
    if not isinstance(cpu, str) or type(threads) is not int:
        raise _damaged(path, 1, "it does not say where it was measured")
    return Machine(cpu, threads)


def _decode(record: Mapping[str, Any]) -> Entry:
    best = record["best"]
    return Entry(
        _text(record["problem"]), _text(record["default"]), _time(record["default_ns"]),
        None if best is None else _text(best), _time(record["ratio"]),
        {_text(name): _time(ratio) for name, ratio in record["tried"].items()},
    )  # fmt: skip


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"{value!r} is no time")
    return float(value)
