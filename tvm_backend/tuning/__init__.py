"""Measured search of kernel schedules, and its deterministic replay."""

from tvm_backend.tuning.database import Database, Machine
from tvm_backend.tuning.problems import Replayed, problems, replay, without_variants
from tvm_backend.tuning.result import Tuned, TunedLayer, result
from tvm_backend.tuning.search import Search
from tvm_backend.tuning.stopwatch import HostLoader

__all__ = [
    "Database",
    "HostLoader",
    "Machine",
    "Replayed",
    "Search",
    "Tuned",
    "TunedLayer",
    "problems",
    "replay",
    "result",
    "without_variants",
]
