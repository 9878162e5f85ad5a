"""What bit allocation gives back: a width a layer, and the front of loss against size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxquant.config import Config
from fxquant.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LayerBits:
    """The width of one weight.

    Attributes:
        name: Module path of its (first) layer, or the node name.
        bits: Its width.
        size: Number of weights.
        macs: Multiply-accumulates for one sample.
        activation_bits: Bits of the layer's input.
        fixed: Whether the configuration prescribes the width.
        rate: Bits per weight it is worth, None where not computed.
        loss: Predicted loss at this width, None where fixed.
        rules: For `Config.names`: the names, and the bits their results have.
    """

    name: str
    bits: int
    size: int
    macs: int
    activation_bits: int
    fixed: bool
    rate: float | None
    loss: float | None
    rules: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        rate = "" if self.rate is None else f"{self.rate:.2f}"
        loss = "fixed" if self.loss is None else f"{self.loss:.2e}"
        return (f"{self.name:<32} {self.size:>10} {self.macs / 1e6:>9.2f} "
                f"{self.activation_bits:>6} {rate:>6} {loss:>9} {self.bits:>5}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Allocation:
    """A bit width for every weight of a network.

    Attributes:
        layers: All integer weights, in execution order.
        base: The configuration the widths refine.
        method: How the widths were found.
        note: What the user should know of it.
    """

    layers: tuple[LayerBits, ...]
    base: Config
    method: str
    note: str = ""

    @property
    def bits(self) -> dict[str, int]:
        """Width by layer name."""
        return {layer.name: layer.bits for layer in self.layers}

    @property
    def size(self) -> int:
        """Bits of all integer weights."""
        return sum(layer.bits * layer.size for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """Multiply-accumulates times weight bits times activation bits, for one sample."""
        return sum(n.macs * n.bits * n.activation_bits for n in self.layers)

    @property
    def average_bits(self) -> float:
        """Mean width of all integer weights."""
        return self.size / sum(layer.size for layer in self.layers)

    @property
    def average_chosen_bits(self) -> float:
        """Mean width of the weights whose width was chosen."""
        chosen = [layer for layer in self.layers if not layer.fixed]
        return sum(n.bits * n.size for n in chosen) / sum(n.size for n in chosen)

    @property
    def loss(self) -> float:
        """Predicted loss of the chosen widths; comparable within one method only."""
        return sum(layer.loss for layer in self.layers if layer.loss is not None)

    @property
    def config(self) -> Config:
        """The configuration to quantize with: the base and a rule a layer."""
        default = self.base.default
        assert default is not None  # otherwise no layer would have been free
        return self.base.with_rules(
            names={
                name: replace(default, weight_bits=layer.bits, activation_bits=activation_bits)
                for layer in self.layers
                if not layer.fixed
                for name, activation_bits in layer.rules
            }
        )

    def __str__(self) -> str:
        head = (f"{'layer':<32} {'weights':>10} {'MMACs':>9} {'a bits':>6} {'rate':>6} "
                f"{'loss':>9} {'bits':>5}")  # fmt: skip
        summary = (
            f"{self.average_chosen_bits:.3f} bits a chosen weight, {self.average_bits:.3f} over "
            f"all; {self.size / 8192:.1f} KiB; {self.bit_operations / 1e9:.3f} G bit-operations; "
            f"predicted loss {self.loss:.3e} ({self.method})"
        )
        notes = [self.note] if self.note else []
        return "\n".join([head, *map(str, self.layers), summary, *notes])


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """Allocations of which none is both larger and worse than another.

    Attributes:
        allocations: By rising size.
    """

    allocations: tuple[Allocation, ...]

    @classmethod
    def of(cls, allocations: Sequence[Allocation]) -> ParetoFront:
        """The front among some allocations of one method."""
        kept: list[Allocation] = []
        for allocation in sorted(allocations, key=lambda a: (a.size, a.loss)):
            if not kept or allocation.loss < kept[-1].loss:
                kept.append(allocation)
        return cls(tuple(kept))

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self.allocations)

    def __len__(self) -> int:
        return len(self.allocations)

    def __str__(self) -> str:
        lines = [f"{'bits chosen':>11} {'bits all':>8} {'KiB':>10} {'G bit-ops':>10} {'loss':>10}"]
        lines += [
            f"{a.average_chosen_bits:>11.3f} {a.average_bits:>8.3f} {a.size / 8192:>10.1f} "
            f"{a.bit_operations / 1e9:>10.3f} {a.loss:>10.3e}"
            for a in self
        ]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> Path:
        """Write a picture of predicted loss against average bits; the suffix names the format.

        Raises:
            ConfigError: As `figure_for`.
        """
        figure = figure_for(path)
        axes = figure.add_subplot()
        axes.semilogy([a.average_chosen_bits for a in self], [a.loss for a in self], "o-")
        axes.set_xlabel("average bits of chosen weights")
        axes.set_ylabel("predicted loss")
        axes.grid(True, which="both", alpha=0.3)
        figure.savefig(path)
        return Path(path)


def figure_for(path: str | Path) -> Any:
    """An empty matplotlib figure that can be saved as a file.

    Raises:
        ConfigError: matplotlib is not installed, or does not know the suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "the front cannot be plotted", why="matplotlib is not installed",
            remedy="pip install matplotlib, or print the front",
        ) from error  # fmt: skip
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in known:
        raise ConfigError(
            f"the front cannot be plotted as {path}",
            why="matplotlib takes the format from the suffix, and does not know this one",
            remedy=f"use one of {', '.join(f'.{name}' for name in sorted(known))}",
        )
    return figure
