"""All constants of a program in one read-only block; weight codes of few bits are packed.

A kernel that unpacks its codes itself brings them packed, and needs no memory to widen them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_backend.emit.conv_weights import code_bits
from tvm_backend.layout import round_up
from tvm_backend.memory_plan import ALIGNMENT
from tvm_backend.program import Program, Step
from tvm_backend.standalone.bit_packing import BLOCK, WIDTHS, pack, packed_bytes

_SMALL = 1024  # bytes; smaller constants are aligned to one vector only
_VECTOR = 16


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant of a kernel.

    Attributes:
        offset: Place in the block.
        bits: Width of the codes if they are packed, else 0.
        count: Elements.
    """

    offset: int
    bits: int = 0
    count: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of packed codes."""
        return -(-self.count // BLOCK)

    @property
    def widened_bytes(self) -> int:
        """Memory its widened codes take, 0 if they are used in place."""
        return self.blocks * BLOCK if self.bits else 0


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weight codes of one layer.

    Attributes:
        node: Its node in the graph.
        codes: Codes of the layer.
        kernel_codes: Codes as the kernel reads them, with the padding to vectors.
        bits: Width they are stored at; 16 where they are transformed.
        nbytes: Bytes stored.
    """

    node: str
    codes: int
    kernel_codes: int
    bits: int
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The block.

    Attributes:
        data: uint8.
        steps: Constants of each step.
        values: Offsets of the constant values, by name.
        layers: Layers with weight codes.
    """

    data: np.ndarray
    steps: tuple[tuple[Constant, ...], ...]
    values: Mapping[str, int]
    layers: tuple[LayerWeights, ...]

    @property
    def widths(self) -> list[int]:
        """Widths of packed codes."""
        return sorted({c.bits for constants in self.steps for c in constants if c.bits})

    def scratch_bytes(self) -> dict[int, int]:
        """Bytes of widened codes by step."""
        sizes = {i: sum(c.widened_bytes for c in cs) for i, cs in enumerate(self.steps)}
        return {step: size for step, size in sizes.items() if size}


def lay_out(program: Program) -> Weights:
    """Pack and place a program's constants; equal arrays are stored once."""
    block = _Block()
    steps, layers = [], []
    for step in program.steps:
        constants: tuple[Constant, ...] = ()
        if isinstance(step, Step):
            constants = tuple(_constant(block, a, step.weights > 0) for a in step.kernel.constants)
            if step.weights:
                layers.append(_layer(step, constants))
        steps.append(constants)
    values = {name: block.place(array) for name, array in program.constants.items()}
    return Weights(block.data(), tuple(steps), values, tuple(layers))


class _Block:
    """Arrays one after the other."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._data = bytearray()

    def place(self, array: np.ndarray) -> int:
        """Offset of an array's bytes."""
        content = np.ascontiguousarray(array).tobytes()
        if content not in self._known:
            alignment = _VECTOR if len(content) < _SMALL else ALIGNMENT
            self._data.extend(bytes(-len(self._data) % alignment))
            self._known[content] = len(self._data)
            self._data.extend(content)
        return self._known[content]

    def data(self) -> np.ndarray:
        """Everything, up to a whole line: kernels load whole vectors."""
        size = round_up(len(self._data) + 1, ALIGNMENT)
        return np.frombuffer(self._data.ljust(size, b"\0"), np.uint8)


def _constant(block: _Block, array: np.ndarray, weights: bool) -> Constant:
    if weights and array.dtype == np.int8:
        bits = code_bits(array)
        if bits in WIDTHS and packed_bytes(array.size, bits) < array.size:
            return Constant(block.place(pack(array.reshape(-1), bits)), bits, array.size)
    return Constant(block.place(array), 0, array.size)


def _layer(step: Step, constants: tuple[Constant, ...]) -> LayerWeights:
    """Codes of a layer: int8 constants, or the one that its kernel unpacks itself."""
    kernel = step.kernel
    if kernel.weight_bits < 8:
        nbytes = kernel.constants[0].nbytes
        count = nbytes * 8 // kernel.weight_bits
        return LayerWeights(step.node, step.weights, count, kernel.weight_bits, nbytes)
    if kernel.constants[0].dtype == np.int16:  # of a Winograd kernel
        transformed = kernel.constants[0]
        return LayerWeights(step.node, step.weights, transformed.size, 16, transformed.nbytes)
    pairs = zip(kernel.constants, constants, strict=True)
    codes = [(a.size, c.bits) for a, c in pairs if a.dtype == np.int8]
    nbytes = sum(packed_bytes(count, bits) if bits else count for count, bits in codes)
    widest = max((bits or 8 for _, bits in codes), default=8)
    return LayerWeights(step.node, step.weights, sum(n for n, _ in codes), widest, nbytes)
