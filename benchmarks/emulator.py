"""Instruction counts under qemu-user, by a plugin that this file builds from its source.

qemu's time says nothing about a device; the number of instructions does, and it is repeatable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fxquant.errors import TargetError

_SOURCE = Path(__file__).with_name("count_instructions.c")


@dataclass(frozen=True, slots=True)
class Block:
    """A translated block: straight-line code.

    Attributes:
        address: Of its first instruction.
        instructions: In it.
        runs: How often it ran.
    """

    address: int
    instructions: int
    runs: int

    @property
    def executed(self) -> int:
        """Instructions executed in it."""
        return self.instructions * self.runs


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function in a program: `[start, stop)`."""

    name: str
    start: int
    stop: int


class Counter:
    """Runs programs with the plugin.

    Args:
        folder: Where the plugin is built and counts are written.

    Raises:
        TargetError: There is no C compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        self.library, self._counts = folder / "count_instructions.so", folder / "counts.txt"
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(self.library), str(_SOURCE)]
        run_tool(command)

    @contextmanager
    def environment(self) -> Iterator[Callable[[], list[Block]]]:
        """Every qemu started in the block counts; call what is yielded after one has ended."""
        previous = os.environ.get("QEMU_PLUGIN")
        os.environ["QEMU_PLUGIN"] = f"{self.library},out={self._counts}"
        try:
            yield lambda: read_blocks(self._counts.read_text())
        finally:
            del os.environ["QEMU_PLUGIN"]
            if previous is not None:
                os.environ["QEMU_PLUGIN"] = previous

    def run(self, command: Sequence[str]) -> list[Block]:
        """Counts of one qemu command.

        Raises:
            TargetError: It fails.
        """
        with self.environment() as counts:
            run_tool(command)
            return counts()


def run_tool(command: Sequence[str], text: str | None = None) -> str:
    """Standard output of a command.

    Args:
        command: Program and arguments.
        text: Its standard input.

    Raises:
        TargetError: The program is absent or fails.
    """
    if shutil.which(command[0]) is None:
        raise TargetError(f"{command[0]} is not installed", remedy="install it, or leave it out")
    done = subprocess.run(command, capture_output=True, text=True, check=False, input=text)
    if done.returncode:
        raise TargetError(
            f"{command[0]} failed",
            where=" ".join(command)[:500],
            why=f"exit status {done.returncode}: {done.stderr.strip()[-1000:]}",
        )
    return done.stdout


def read_blocks(text: str) -> list[Block]:
    """Blocks from the plugin's lines; one that was translated twice has two."""
    rows = (line.split() for line in text.splitlines())
    return [Block(int(address, 16), int(count), int(runs)) for address, count, runs in rows]


def read_symbols(text: str) -> list[Symbol]:
    """Functions from the lines of `nm --defined-only --print-size`."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[2] in "tT":
            start = int(fields[0], 16)
            found.append(Symbol(fields[3], start, start + int(fields[1], 16)))
    return found


def by_symbol(blocks: Iterable[Block], symbols: Sequence[Symbol]) -> Mapping[str, int]:
    """Instructions executed in each function; those elsewhere are left out."""
    ordered = sorted(symbols, key=lambda s: s.start)
    total = dict.fromkeys((s.name for s in ordered), 0)
    position = 0
    for block in sorted(blocks, key=lambda b: b.address):
        while position < len(ordered) and ordered[position].stop <= block.address:
            position += 1
        if position < len(ordered) and ordered[position].start <= block.address:
            total[ordered[position].name] += block.executed
    return total
