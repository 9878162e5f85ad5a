"""What a compiled network tells about itself: where values lie, and how long each kernel takes.

Compilers are not imported here; a compiled network that offers these two methods is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class Placed(Protocol):
    """A value in memory, by offset and by the steps it is alive in."""

    @property
    def name(self) -> str:
        """The value."""
        ...

    @property
    def offset(self) -> int:
        """First byte in the arena."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    @property
    def first(self) -> int:
        """Step that writes it."""
        ...

    @property
    def last(self) -> int:
        """Last step that reads it."""
        ...


class KernelTime(Protocol):
    """Time of one kernel call."""

    @property
    def node(self) -> str:
        """Node of the network it belongs to."""
        ...

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        ...

    @property
    def milliseconds(self) -> float:
        """Median over the rounds."""
        ...


@runtime_checkable
class Profiled(Protocol):
    """A compiled network that can be looked into."""

    def memory_map(self) -> Sequence[Placed]:
        """The static memory plan."""
        ...

    def profile(self, *inputs: Any) -> Sequence[KernelTime]:
        """Every kernel call, in order."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """A static memory plan.

    Attributes:
        values: The values in the arena.
        nbytes: Size of the arena.
        needed: Bytes alive at the worst step: no plan can do with less.
    """

    values: tuple[Placed, ...]
    nbytes: int
    needed: int

    @classmethod
    def of(cls, values: Sequence[Placed]) -> MemoryMap:
        """From the placed values."""
        steps = range(max((v.last for v in values), default=-1) + 1)
        alive = (sum(v.nbytes for v in values if v.first <= s <= v.last) for s in steps)
        end = max((v.offset + v.nbytes for v in values), default=0)
        return cls(tuple(values), end, max(alive, default=0))
