"""The size of TVM's thread pool, and how long its threads spin.

The pool is made once, at the first parallel loop, with TVM_NUM_THREADS threads or half of the
processors; later it can only use fewer. So the variable is set to all processors before that,
and every run configures how many of them it wants. By default that is one a physical core: two
on one core share its multipliers, and the loops are split evenly, so the slower half is waited for.

A thread without work spins before it sleeps, so that the next kernel need not wake it. TVM spins
for 300,000 rounds, a large part of a second that other programs on a busy machine want; here it
is about as long as the longest kernel that runs on one thread.

The threads of the pool do not survive a fork: a child of a process that has used it would wait for
them for ever, unless it runs on one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from fxquant.errors import ConfigError
from tvm_backend.tvm_api import tvm

_VARIABLE = "TVM_NUM_THREADS"
_KEEP_AFFINITY = "TVM_BIND_THREADS"
_SPIN, _SPIN_COUNT = "TVM_THREAD_POOL_SPIN_COUNT", "2000"
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_current = threading.local()
_users: set[int] = set()  # processes, this one and those it was forked from, that used the pool


def available_processors() -> set[int]:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(processors: Iterable[int], siblings: str = _SIBLINGS) -> int:
    """Cores that some processors belong to; all are cores where the system does not tell.

    Args:
        processors: Numbers of processors.
        siblings: Path of the file that lists the processors of a core, `{}` for a processor.
    """
    cores = set()
    for processor in processors:
        try:
            cores.add(Path(siblings.format(processor)).read_text().strip())
        except OSError:
            cores.add(f"alone {processor}")
    return len(cores)


def prepare_pool() -> int:
    """Let the pool have all processors, unless the user chose; returns its size."""
    os.environ.setdefault(_KEEP_AFFINITY, "0")  # pinned threads fight with other thread pools
    os.environ.setdefault(_SPIN, _SPIN_COUNT)
    value = os.environ.setdefault(_VARIABLE, str(len(available_processors())))
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{_VARIABLE}={value} is no thread count", remedy="unset it")
    return int(value)


def check_threads(threads: int | None) -> int:
    """A thread count: the argument, or one a physical core within the pool's size.

    Raises:
        ConfigError: It is no positive integer, or larger than the pool.
    """
    size = prepare_pool()
    if threads is None:
        return min(size, physical_cores(available_processors()))
    if type(threads) is not int:
        raise ConfigError(f"threads={threads!r} is no number of threads", remedy=f"give 1..{size}")
    if threads < 1 or threads > size:
        raise ConfigError(
            f"threads={threads} is not possible",
            why=f"the thread pool has {size} threads",
            remedy=f"choose 1..{size}, or set {_VARIABLE} before the first run",
        )
    return threads


def use_threads(threads: int) -> None:
    """Let parallel loops of this Python thread use that many threads.

    Raises:
        ConfigError: The pool is that of the process this one was forked from.
    """
    if threads > 1 and _users - {os.getpid()}:
        raise ConfigError(
            f"threads={threads} is not possible in a forked process",
            why="the process it was forked from had run networks, and its threads stayed there",
            remedy="use threads=1, fork before the first run, or start processes by 'spawn'",
        )
    _users.add(os.getpid())
    if getattr(_current, "threads", None) != threads:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
        _current.threads = threads
