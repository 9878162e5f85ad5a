"""The instruction benchmark: counts, symbols, inner loops; and one program under the emulator."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from benchmarks.costs import node_macs
from benchmarks.emulator import Block, Counter, Symbol, by_symbol, read_blocks, read_symbols
from benchmarks.inner_loops import (
    Instruction,
    assembly,
    cycles,
    executions,
    loops_of,
    macs_of,
    read_cycles,
    read_instructions,
)
from benchmarks.instructions import (
    LayerCount,
    count_ours,
    cpu_description,
    features,
    table,
)
from fxquant import targets
from fxquant.errors import TargetError

DUMP = """
0000000000400530 <kernel>:
  400530:\tmov\tw2, #0x86a0                \t// #34464
  400534:\tldr\tq0, [x1], #16
  400538:\tsdot\tv0.4s, v1.16b, v2.4b[1]
  40053c:\tsubs\tx3, x3, #0x1
  400540:\tb.ne\t400534 <kernel+0x4>  // b.any
  400544:\tcbnz\tx4, 400530 <kernel>
  400548:\tret
"""
BLOCKS = [Block(0x400530, 5, 10), Block(0x400534, 4, 90), Block(0x400544, 1, 10)]


def test_blocks_and_symbols() -> None:
    assert read_blocks("400530 5 a\n".replace(" a", " 10")) == BLOCKS[:1]
    text = "0000000000400530 000000000000001c T kernel\n0000000000001000 0000000000000010 r data\n"
    symbols = read_symbols(text)
    assert symbols == [Symbol("kernel", 0x400530, 0x40054C)]
    elsewhere = [Block(0x400000, 3, 7), Block(0x40054C, 3, 7)]
    again = Block(0x400534, 4, 1)  # translated twice
    counts = by_symbol([*elsewhere, again, *BLOCKS], [*symbols, Symbol("last", 0x400600, 0x400700)])
    assert counts == {"kernel": 5 * 10 + 4 * 91 + 10, "last": 0}


def test_loops_without_what_is_inside_them() -> None:
    code = read_instructions(DUMP)
    assert code[0] == Instruction(0x400530, "mov w2, #0x86a0") and len(code) == 7
    runs = executions(BLOCKS)
    assert runs[0x400534] == 100  # the first round belongs to the block before the loop, too
    inner, outer = loops_of(code, runs)
    assert [i.address for i in inner.body] == [0x400534, 0x400538, 0x40053C, 0x400540]
    assert inner.executed == 400 and inner.macs == 16 and inner.innermost
    assert [i.address for i in outer.body] == [0x400530, 0x400544]
    assert outer.iterations == 10 and outer.macs == 0 and not outer.innermost
    assert assembly(inner).splitlines() == [
        ".Ltop:", "ldr q0, [x1], #16", "sdot v0.4s, v1.16b, v2.4b[1]", "subs x3, x3, #0x1",
        "b.ne .Ltop",
    ]  # fmt: skip
    assert loops_of(code, {}) == []  # none ran


def test_overlapping_loops_share_no_instruction() -> None:
    texts = ["nop", "nop", "nop", "b.ne 0 <f>", "nop", "b.ne 4 <f+0x4>", "b.ne 0 <f>"]
    code = [Instruction(4 * i, text) for i, text in enumerate(texts)]
    loops = loops_of(code, {instruction.address: 10 for instruction in code})
    assert sorted(i.address for loop in loops for i in loop.body) == [4 * i for i in range(7)]
    assert [len(loop.body) for loop in loops] == [4, 2, 1]
    assert [loop.innermost for loop in loops] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("sdot v0.4s, v1.16b, v2.4b[3]", 16),
        ("usdot v0.2s, v1.8b, v2.4b[0]", 8),
        ("smmla v0.4s, v1.16b, v2.16b", 32),
        ("smlal2 v0.8h, v1.16b, v2.16b", 8),
        ("smull v0.8h, v1.8b, v2.8b", 8),
        ("umull v3.4s, v1.4h, v2.4h", 4),
        ("mla v0.4s, v1.4s, v2.4s", 4),
        ("smull x0, w1, w2", 0),
        ("madd x0, x1, x2, x3", 0),
        ("sadalp v0.4s, v1.8h", 0),
        ("sqrdmulh v0.8h, v1.8h, v2.8h", 0),
    ],
)
def test_macs_of_instructions(text: str, macs: int) -> None:
    assert macs_of(text) == macs


def test_reports_of_the_cycle_model() -> None:
    assert read_cycles("Iterations: 100\nTotal Cycles:      1234\n") == 1234
    with pytest.raises(ValueError, match="cycles"):
        read_cycles("nothing")


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="llvm-mca is not installed")
def test_cycles_of_a_loop() -> None:
    loop, _ = loops_of(read_instructions(DUMP), executions(BLOCKS))
    assert 1 < cycles(loop, "cortex-a55") < 20
    with pytest.raises(TargetError, match="llvm-mca"):
        cycles(loop, "no-such-processor")


def test_table() -> None:
    rates = {"cortex-a55": 12.345}
    found = [
        LayerCount("a", "k1", 2_000_000, 125_000, rates, {"cortex-a55": 162_000.0}),
        LayerCount("b", "k2", 0, 1000, {}, {}),
    ]
    lines = table(found, 126_500).splitlines()
    assert len(lines) == 5 and "cortex-a55" in lines[0]
    assert lines[1].split() == ["a", "2.00", "125.0", "0.0625", "12.35", "k1"]
    assert lines[2].split() == ["b", "0.00", "1.0", "k2"]
    assert "0.1 M instructions, 0.0633 per MAC" in lines[3]
    assert lines[4] == "M cycles of all loops: cortex-a55 0.16"


def test_what_a_core_says_about_itself() -> None:
    assert features(targets.CORTEX_A53) == ()
    assert features(targets.CORTEX_A76) == ("asimddp",)
    assert features(targets.NEOVERSE_V1) == ("asimddp", "i8mm")
    lines = cpu_description(targets.CORTEX_A76).splitlines()
    assert "asimddp" in next(x for x in lines if x.startswith("Features"))
    assert "asimddp" not in cpu_description(targets.CORTEX_A53)


@pytest.mark.qemu
def test_counts_of_a_program(tmp_path, quantized) -> None:
    for tool in ("qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    before = os.environ.get("QEMU_PLUGIN")
    counter = Counter(tmp_path)
    arguments = (torch.zeros(1, 3, 8, 8), targets.CORTEX_A76, [], counter)
    found, total = count_ours(quantized, *arguments, tmp_path / "a")
    assert count_ours(quantized, *arguments, tmp_path / "b") == (found, total)  # repeatable
    assert os.environ.get("QEMU_PLUGIN") == before
    assert sum(layer.macs for layer in found) == sum(node_macs(quantized.integer).values())
    assert all(layer.instructions > 0 for layer in found)
    assert sum(layer.instructions for layer in found) <= total
