"""The loops of a function, from its disassembly, and their cycles by llvm-mca.

llvm-mca assumes hits in the first-level cache and right branch predictions: an upper bound of
what the core does. The tool is only as good as its model of the core.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.emulator import Block, run_tool

ATTRIBUTES = "+dotprod,+i8mm"
_INSTRUCTION = 4  # bytes
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
    """A loop, without the loops inside it.

    Attributes:
        body: Its own instructions, the branch back last.
        iterations: How often they ran, on average.
        innermost: Whether it has no loop inside.
    """

    body: tuple[Instruction, ...]
    iterations: float
    innermost: bool

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one iteration."""
        return sum(macs_of(instruction.text) for instruction in self.body)

    @property
    def executed(self) -> float:
        """Instructions executed in it."""
        return self.iterations * len(self.body)


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


def executions(blocks: Iterable[Block]) -> Counter[int]:
    """How often the instruction at each address ran; blocks may overlap."""
    runs: Counter[int] = Counter()
    for block in blocks:
        for i in range(block.instructions):
            runs[block.address + _INSTRUCTION * i] += block.runs
    return runs


def loops_of(code: Sequence[Instruction], runs: Mapping[int, int]) -> list[Loop]:
    """All loops of a function that ran, the one with most executed instructions first.

    An instruction belongs to the shortest loop around it: those of compilers may overlap.

    Args:
        code: The function.
        runs: How often each instruction ran, by address.
    """
    position = {instruction.address: i for i, instruction in enumerate(code)}
    spans = set()
    for i, instruction in enumerate(code):
        match = _BRANCH.match(instruction.text)
        first = position.get(int(match.group(1), 16)) if match else None
        if first is not None and first <= i:
            spans.add((first, i))
    taken: set[int] = set()
    loops = []
    for first, last in sorted(spans, key=lambda span: span[1] - span[0]):
        own = [i for i in range(first, last + 1) if i not in taken]
        innermost = taken.isdisjoint(range(first, last + 1))
        taken.update(own)
        ran = sum(runs.get(code[i].address, 0) for i in own)
        if ran:
            loops.append(Loop(tuple(code[i] for i in own), ran / len(own), innermost))
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
