"""Large blocks are reused inside `kept_memory` and given back after it."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxquant.allocator import kept_memory

SIZE = 160 << 20  # bytes, more than glibc keeps by itself
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def faults_of_a_block() -> int:
    """Pages fetched for one more block after another of its size was freed."""
    block = torch.ones(SIZE, dtype=torch.uint8)
    del block
    before = page_faults()
    torch.ones(SIZE, dtype=torch.uint8)
    return page_faults() - before


def test_freed_blocks_are_reused_inside() -> None:
    with kept_memory():
        inside = faults_of_a_block()
    assert inside * 20 < faults_of_a_block()


def test_memory_goes_back_afterwards() -> None:
    """In a process of its own: other tests may keep pieces behind the block."""
    code = (
        "import torch; from pathlib import Path; from fxquant.allocator import kept_memory\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1])\n"
        "before = resident()\n"
        "with kept_memory():\n"
        f"    block = torch.ones({SIZE}, dtype=torch.uint8); del block\n"
        "    inside = resident()\n"
        "print(inside - before, resident() - before)"
    )
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=root)  # fmt: skip
    inside, after = map(int, run.stdout.split())
    assert after * 4 < inside


def test_an_error_inside_leaves_the_allocator_as_it_was() -> None:
    with pytest.raises(ValueError, match="planted"), kept_memory():
        raise ValueError("planted")
    assert faults_of_a_block() > SIZE >> 14
