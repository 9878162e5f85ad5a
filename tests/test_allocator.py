"""Large blocks are reused inside `kept_memory` and given back after it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 160 << 20  # bytes, more than glibc keeps by itself
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

MEASURES = f"""
import resource
from pathlib import Path
import torch
from fxquant.allocator import kept_memory

def block(size={SIZE}):
    return torch.ones(size, dtype=torch.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults_of_a_block(size={SIZE - (1 << 20)}):  # an aligned block needs more than its own place
    before = faults()
    block(size)
    return faults() - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
"""  # in pages


def measured(code: str) -> list[int]:
    """What `code` prints, in a process of its own: in this one, pieces of other tests lie between
    the blocks."""
    run = subprocess.run([sys.executable, "-c", MEASURES + code], capture_output=True, text=True,
                         check=True, cwd=Path(__file__).resolve().parent.parent)  # fmt: skip
    return [int(word) for word in run.stdout.split()]


def test_freed_blocks_are_reused_inside() -> None:
    inside, outside = measured(
        "with kept_memory():\n"
        "    block()\n"
        "    print(faults_of_a_block())\n"
        "print(faults_of_a_block())"
    )
    assert inside * 20 < outside


def test_freed_blocks_stay_beyond_a_gigabyte() -> None:
    (inside,) = measured(
        "with kept_memory():\n"
        "    blocks, last = [block(20 << 20) for _ in range(60)], block()\n"
        "    del blocks\n"
        "    del last\n"
        "    print(faults_of_a_block(500 << 20))"  # more than small pieces can have set apart
    )
    assert inside < SIZE >> 16


def test_memory_goes_back_afterwards() -> None:
    inside, after = measured(
        "before = resident()\n"
        "with kept_memory():\n"
        "    block()\n"
        "    print(resident() - before)\n"
        "print(resident() - before)"
    )
    assert after * 4 < inside


def test_an_error_inside_leaves_the_allocator_as_it_was() -> None:
    (outside,) = measured(
        "try:\n"
        "    with kept_memory():\n"
        "        raise ValueError('planted')\n"
        "except ValueError:\n"
        "    block()\n"
        "    print(faults_of_a_block())"
    )
    assert outside > SIZE >> 14
