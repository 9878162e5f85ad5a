"""Short names for vector expressions: loads, splats, shuffles and LLVM intrinsics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm_backend.tvm_api import IN_REGISTERS, T, tirx


def load(buffer: Any, offset: Any, lanes: int) -> Any:
    """`lanes` consecutive elements as one vector."""
    return buffer[T.ramp(offset, 1, lanes)] if lanes > 1 else buffer[offset]


def store(buffer: Any, offset: Any, value: Any, lanes: int) -> None:
    """Write a vector to consecutive elements."""
    T.buffer_store(buffer, value, [T.ramp(offset, 1, lanes) if lanes > 1 else offset])


def constant(value: int, dtype: str, lanes: int) -> Any:
    """A vector with the same constant in each lane."""
    return splat(tirx.IntImm(dtype, value), lanes)


def prefetch(buffer: Any, offset: Any, locality: int = 3) -> None:
    """Ask for the cache line of an element; one behind the end of the buffer does no harm.

    Args:
        buffer: Where.
        offset: The element.
        locality: LLVM's: 3 for the first-level cache, 2 for the second.
    """
    read, keep, data = T.int32(0), T.int32(locality), T.int32(1)
    address = T.address_of(buffer[offset])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, keep, data))


def splat(scalar: Any, lanes: int) -> Any:
    """A vector with the same scalar in each lane."""
    return T.broadcast(scalar, lanes) if lanes > 1 else scalar


def shuffle(vectors: Sequence[Any], lanes: Sequence[int]) -> Any:
    """Lanes picked from the concatenation of `vectors`."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", lane) for lane in lanes])


def concat(vectors: Sequence[Any], lanes: int) -> Any:
    """The vectors (`lanes` each) one after the other."""
    if len(vectors) == 1:
        return vectors[0]
    return shuffle(vectors, range(lanes * len(vectors)))


def llvm(dtype: str, name: str, *arguments: Any) -> Any:
    """Call an LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def clamp(value: Any, low: int, high: int, dtype: str, lanes: int) -> Any:
    """`min(max(value, low), high)`: LLVM turns it into saturating narrowing where it can."""
    value = T.max(value, constant(low, dtype, lanes))
    return T.min(value, constant(high, dtype, lanes))


def registers(count: int, dtype: str) -> Any:
    """A local array that stays in registers as long as its indices are constants."""
    return T.alloc_buffer((count,), dtype, annotations=IN_REGISTERS)


@contextmanager
def loop(extent: int) -> Iterator[Any]:
    """A serial loop; the constant 0 where there is nothing to repeat."""
    if extent == 1:
        yield 0
    else:
        with T.serial(extent) as index:
            yield index
