"""Threads: the default count, and what the pool is told before it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxquant.errors import ConfigError
from tvm_backend import threads


def test_one_thread_a_physical_core(tmp_path: Path, monkeypatch) -> None:
    for processor, core in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / str(processor)).write_text(core + "\n")
    siblings = str(tmp_path / "{}")
    assert threads.physical_cores(range(4), siblings) == 2
    assert threads.physical_cores([1], siblings) == 1
    assert threads.physical_cores([0, 2, 7, 8], siblings) == 3  # 7 and 8 are unknown
    monkeypatch.setattr(threads, "physical_cores", lambda _: 3)
    monkeypatch.setenv("TVM_NUM_THREADS", "8")
    assert threads.check_threads(None) == 3 and threads.check_threads(8) == 8
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    assert threads.check_threads(None) == 2


def test_what_the_user_chose_stays(monkeypatch) -> None:
    chosen = {"TVM_NUM_THREADS": "3", "TVM_THREAD_POOL_SPIN_COUNT": "7", "TVM_BIND_THREADS": "1"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert threads.prepare_pool() == 3
    assert {name: os.environ[name] for name in chosen} == chosen
    for name in chosen:
        monkeypatch.delenv(name)
    assert threads.prepare_pool() == len(threads.available_processors())
    assert int(os.environ["TVM_THREAD_POOL_SPIN_COUNT"]) < 300_000


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_no_thread_count(monkeypatch, value: str) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", value)
    with pytest.raises(ConfigError, match="TVM_NUM_THREADS"):
        threads.check_threads(None)


def test_a_forked_process_has_one_thread(monkeypatch) -> None:
    monkeypatch.setattr(threads, "_users", {os.getpid() + 1})
    threads.use_threads(1)
    with pytest.raises(ConfigError, match="forked"):
        threads.use_threads(2)
