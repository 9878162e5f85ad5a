"""Target, MacIdiom and TileUnit: the records that describe a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fxquant.errors import TargetError


@dataclass(frozen=True, slots=True)
class MacIdiom:
    """One way to multiply codes by int8 weights and accumulate without loss.

    Attributes:
        name: Suffix of kernel names, and the name of the mirror file in `tvm_backend/macs/`.
        lanes: Output channels of one vector.
        reduction: Products summed into each lane by one step (1, 2, 4 or 8).
        signed_activations: Activations stored as int8 (`code - 128`) if true, else as uint8.
        registers: Architectural vector registers, for tile selection.
        activation_bits: 8, or 16 for activations stored as int16 (`code - 2^15`).
        accumulator: int32 or int64; uint32 where sums wrap.
        chain: Steps whose products are summed in int16 before they are widened; 0 where every
            product is widened at once. Exact only for layers whose codes prove it.
        pixels: Output pixels one step multiplies with the same weights; more than 1 where an
            instruction multiplies matrices.
    """

    name: str
    lanes: int
    reduction: int
    signed_activations: bool
    registers: int
    activation_bits: int = 8
    accumulator: str = "int32"
    chain: int = 0
    pixels: int = 1

    @property
    def storage(self) -> str:
        """Storage type of activations."""
        return f"{'int' if self.signed_activations else 'uint'}{self.activation_bits}"

    @property
    def offset(self) -> int:
        """What is added to a code to get the stored value."""
        return -(1 << (self.activation_bits - 1)) if self.signed_activations else 0

    @property
    def modular(self) -> MacIdiom:
        """The same with sums modulo 2^32."""
        return replace(self, name=f"{self.name}_mod32", accumulator="uint32")


@dataclass(frozen=True, slots=True)
class TileUnit:
    """A unit that multiplies matrices in registers of its own, the tiles.

    One instruction adds `A [rows, depth] @ B [depth, lanes]` to an int32 tile `[rows, lanes]`: rows
    are output pixels, lanes output channels. A has uint8 activations, B int8 weights, `reduction`
    codes of each lane side by side as in the weight vectors of a `MacIdiom`.

    Attributes:
        name: Suffix of kernel names, and the name of the mirror file in `tvm_backend/macs/`.
        rows: Rows of a tile at most.
        lanes: Lanes of a tile.
        depth: Codes in a row of A at most, a multiple of `reduction`.
        reduction: Codes of a lane that lie side by side.
    """

    name: str
    rows: int
    lanes: int
    depth: int
    reduction: int


@dataclass(frozen=True, slots=True)
class Target:
    """A device family.

    Attributes:
        name: Short name, used in files and messages.
        llvm: LLVM options of the TVM target: `mtriple`, `mcpu`, `mattr`, `mfloat-abi`.
        mac: The multiply-accumulate idiom of its kernels on 8-bit activations.
        vector_bits: Width of the vector registers used.
        requires: CPU feature flags (as /proc/cpuinfo spells them) a host needs to run it.
        emulator: qemu-user command that runs it elsewhere, or "".
        compiler: C compiler that links for it, or "" for the host's.
        chains: Idioms with int16 chains, longest first; each layer takes the first its codes
            prove exact, else `mac`. They have the lanes and the storage of `mac`.
        matrix: Idioms of several pixels, which dense layers take where the cost model finds them
            faster. They have the lanes and the storage of `mac`, too.
        taps: Idioms of one product a lane and step, with int16 chains, longest first, for depthwise
            layers. They have the storage of `mac`, and twice its lanes.
        tiles: Its matrix unit, for dense layers where the cost model finds it faster. It has the
            lanes and the reduction of `mac`.
        half_width: Whether execution units are half as wide as the vectors, for the cost model.
    """

    name: str
    llvm: tuple[tuple[str, str | tuple[str, ...]], ...]
    mac: MacIdiom
    vector_bits: int
    requires: tuple[str, ...] = ()
    emulator: str = ""
    compiler: str = ""
    chains: tuple[MacIdiom, ...] = ()
    matrix: tuple[MacIdiom, ...] = ()
    taps: tuple[MacIdiom, ...] = ()
    tiles: TileUnit | None = None
    half_width: bool = False

    def __post_init__(self) -> None:
        if not self.name or self.vector_bits not in (32, 64, 128, 256, 512):
            raise TargetError(
                f"target {self.name!r} with {self.vector_bits}-bit vectors is invalid",
                remedy="give a name and vector_bits of 32, 64, 128, 256 or 512",
            )
        for idiom in self.idioms[1:]:
            alike = (idiom.lanes, idiom.storage) == (self.mac.lanes, self.mac.storage)
            kind = bool(idiom.chain), idiom.pixels > 1
            if not alike or kind != (idiom in self.chains, idiom in self.matrix):
                raise TargetError(
                    f"target {self.name!r} cannot use {idiom.name!r} beside {self.mac.name!r}",
                    why="idioms of one target share lanes and storage",
                    remedy="list idioms of the same lanes and storage: in `chains` those with a "
                    "chain, in `matrix` those of several pixels",
                )

        for idiom in self.taps:
            alike = (idiom.lanes, idiom.storage) == (2 * self.mac.lanes, self.mac.storage)
            if not alike or not idiom.chain or idiom.reduction != 1:
                raise TargetError(
                    f"target {self.name!r} cannot use {idiom.name!r} beside {self.mac.name!r}",
                    why="taps have one product a lane, a chain, the storage and twice the lanes",
                    remedy="use an idiom like SMLAL_SADDW",
                )

        if self.tiles is not None:
            alike = (self.tiles.lanes, self.tiles.reduction) == (self.mac.lanes, self.mac.reduction)
            if not alike or self.mac.storage != "uint8":
                raise TargetError(
                    f"target {self.name!r} cannot use {self.tiles.name!r} beside {self.mac.name!r}",
                    why="a matrix unit reads the weights and the uint8 activations of the idiom",
                    remedy="use an idiom of the same lanes and reduction on uint8 activations",
                )

    @property
    def idioms(self) -> tuple[MacIdiom, ...]:
        """All idioms for 8-bit activations but `taps`; the first serves every layer."""
        return (self.mac, *self.chains, *self.matrix)

    @property
    def triple(self) -> str:
        """LLVM triple, or "" for the host's own."""
        return self._option("mtriple")

    @property
    def processor(self) -> str:
        """LLVM's name of the processor, or "" for the usual one of the triple."""
        return self._option("mcpu")

    def _option(self, name: str) -> str:
        value = dict(self.llvm).get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def is_x86(self) -> bool:
        """Whether the code is for x86-64 (a target without a triple is the build machine)."""
        return self.triple.startswith("x86_64") if self.triple else not self.emulator

    def __str__(self) -> str:
        return self.name
