"""The size of TVM's thread pool.

The pool is made once, at the first parallel loop, with TVM_NUM_THREADS threads or half of the
processors; later it can only use fewer. So the variable is set to all processors before that,
and every run configures how many of them it wants.
"""

from __future__ import annotations

import os
import threading

from fxquant.errors import ConfigError
from tvm_backend.tvm_api import tvm

_VARIABLE = "TVM_NUM_THREADS"
_KEEP_AFFINITY = "TVM_BIND_THREADS"
_current = threading.local()


def available_threads() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_pool() -> int:
    """Let the pool have all processors, unless the user chose; returns its size."""
    os.environ.setdefault(_KEEP_AFFINITY, "0")  # pinned threads fight with other thread pools
    value = os.environ.setdefault(_VARIABLE, str(available_threads()))
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{_VARIABLE}={value} is no thread count", remedy="unset it")
    return int(value)


def check_threads(threads: int | None) -> int:
    """A thread count: the argument, or the pool's size.

    Raises:
        ConfigError: It is not positive, or larger than the pool.
    """
    size = prepare_pool()
    if threads is None:
        return size
    if threads < 1 or threads > size:
        raise ConfigError(
            f"threads={threads} is not possible",
            why=f"the thread pool has {size} threads",
            remedy=f"choose 1..{size}, or set {_VARIABLE} before the first run",
        )
    return threads


def use_threads(threads: int) -> None:
    """Let parallel loops of this Python thread use that many threads."""
    if getattr(_current, "threads", None) != threads:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
        _current.threads = threads
