"""The hottest inner loop of a function, from its disassembly, and its cycles by llvm-mca.

llvm-mca assumes hits in the first-level cache and right branch predictions: an upper bound of
what the core does. The tool is only as good as its model of the core.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.emulator import Block, run_tool

ATTRIBUTES = "+dotprod,+i8mm"
# Vector instruction -> multiply-accumulates by arrangement of its result.
_MACS = (
    (re.compile(r"(?:s|u|us|su)dot\s+v\d+\.(4s|2s)"), {"4s": 16, "2s": 8}),
    (re.compile(r"(?:s|u|us)mmla\s+v\d+\.(4s)"), {"4s": 32}),
    (re.compile(r"[su]ml[as]?l2?\s+v\d+\.(8h|4s|2d)"), {"8h": 8, "4s": 4, "2d": 2}),
    (re.compile(r"[su]mull2?\s+v\d+\.(8h|4s|2d)"), {"8h": 8, "4s": 4, "2d": 2}),
    (re.compile(r"ml[as]\s+v\d+\.(16b|8b|8h|4h|4s|2s)"),
     {"16b": 16, "8b": 8, "8h": 8, "4h": 4, "4s": 4, "2s": 2}),
)  # fmt: skip
_BRANCH = re.compile(r"^(?:b\.?\w*|cbn?z|tbn?z)\s.*?([0-9a-f]+) <")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a disassembly."""

    address: int
    text: str


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop without another loop inside.

    Attributes:
        body: Its instructions, the branch back last.
        executed: Instructions executed in it.
    """

    body: tuple[Instruction, ...]
    executed: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one iteration."""
        return sum(macs_of(instruction.text) for instruction in self.body)


def macs_of(text: str) -> int:
    """Multiply-accumulates of one instruction; 0 for what does not multiply vectors."""
    for pattern, counts in _MACS:
        match = pattern.match(text)
        if match:
            return counts[match.group(1)]
    return 0


def read_instructions(text: str) -> list[Instruction]:
    """Instructions from `objdump --disassemble --no-show-raw-insn`."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(\S.*)$", line)
        if match:
            code = re.sub(r"\s+", " ", match.group(2).partition("//")[0]).strip()
            found.append(Instruction(int(match.group(1), 16), code))
    return found


def inner_loops(code: Sequence[Instruction], blocks: Iterable[Block]) -> list[Loop]:
    """All innermost loops of a function, the one with most executed instructions first."""
    position = {instruction.address: i for i, instruction in enumerate(code)}
    spans = []
    for i, instruction in enumerate(code):
        match = _BRANCH.match(instruction.text)
        first = position.get(int(match.group(1), 16)) if match else None
        if first is not None and first <= i:
            spans.append((first, i))
    innermost = [
        (a, b)
        for a, b in spans
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)
    ]
    counts = [(block.address, block.executed) for block in blocks]
    loops = []
    for first, last in innermost:
        start, stop = code[first].address, code[last].address
        executed = sum(count for address, count in counts if start <= address <= stop)
        loops.append(Loop(tuple(code[first : last + 1]), executed))
    return sorted(loops, key=lambda loop: -loop.executed)


def assembly(loop: Loop) -> str:
    """The loop as source: jumps go to one label."""
    lines = [".Ltop:"]
    for instruction in loop.body:
        match = _BRANCH.match(instruction.text)
        code = instruction.text
        if match:
            code = code[: match.start(1)] + ".Ltop"
        lines.append(re.sub(r"\s*<.*>", "", code))
    return "\n".join(lines) + "\n"


def cycles(loop: Loop, processor: str, iterations: int = 100) -> float:
    """Cycles of one iteration on a processor.

    Raises:
        TargetError: llvm-mca is absent or does not know the processor or an instruction.
    """
    command = [
        "llvm-mca", "-mtriple=aarch64-linux-gnu", f"-mcpu={processor}", f"-mattr={ATTRIBUTES}",
        f"-iterations={iterations}", "-instruction-info=0", "-resource-pressure=0",
    ]  # fmt: skip
    return read_cycles(run_tool(command, assembly(loop))) / iterations


def read_cycles(report: str) -> int:
    """`Total Cycles` of a report of llvm-mca."""
    match = re.search(r"^Total Cycles:\s+(\d+)$", report, re.MULTILINE)
    if match is None:
        raise ValueError("llvm-mca printed no cycles")
    return int(match.group(1))
