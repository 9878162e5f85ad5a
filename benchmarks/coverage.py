"""Which networks run in integers, and whether what is compiled equals the simulator.

    python -m benchmarks.coverage --nets resnet18 timm:repvgg_a0 timm:botnet26t_256@256

Networks of torchvision, and of timm if it is installed, with random weights, at a size in pixels
behind the `@`. Each is quantized to 8 bits (codes rounded to nearest, calibrated on noise: the SQNR
of the result shows a wrong conversion, not what a trained network would lose), compiled for this
machine, and compared on an image it was not calibrated with. Rows are kept in a JSON file and not
measured again; `--document docs/coverage.md` puts the table there.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fxquant
import tvm_backend
from benchmarks.accuracy import sqnr_db
from benchmarks.document import rewrite
from benchmarks.models import network, quantize
from fxquant.inspection.facts import node_facts

RESULTS = Path(__file__).parent / "results" / "coverage.json"
SIZE = 128
_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One network.

    Attributes:
        name: torchvision's, or "timm:" and timm's.
        size: Pixels along an axis of an image.
        operators: Operators of the quantized graph.
        islands: Those that stay in float, by kind.
        equal: Whether compiled and simulated results are the same.
        sqnr: Of the result against the float network, dB.
        error: Why there is no result: what `quantize` or `compile` said; or "".
    """

    name: str
    size: int
    operators: int = 0
    islands: tuple[tuple[str, int], ...] = ()
    equal: bool = False
    sqnr: float = 0.0
    error: str = ""

    @property
    def cells(self) -> list[str]:
        """The table's cells."""
        if self.error:
            return [self.name, str(self.size), "", "", "", f"no result: {self.error}"]
        kinds = ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in self.islands)
        equal = "yes" if self.equal else "no"
        return [
            self.name, str(self.size), str(self.operators), equal, f"{self.sqnr:.1f}", kinds or "-",
        ]  # fmt: skip


def measure(name: str, size: int) -> Row:
    """Quantize, compile and compare one network."""
    torch.manual_seed(0)
    model, images = network(name, size=size), torch.randn(_IMAGES + 1, 3, size, size)
    try:
        quantized = quantize(model, images[:_IMAGES])
        compiled = tvm_backend.compile(quantized, threads=1)
    except fxquant.errors.FxQuantError as error:
        return Row(name, size, error=str(error).splitlines()[0])
    x = images[_IMAGES:]
    with torch.no_grad():
        expected, simulated = model(x), quantized(x)
    if not expected.any():
        return Row(name, size, error="random weights give zeros, which say nothing")
    kinds = Counter(island.operator for island in quantized.float_islands)
    return Row(
        name, size, len(node_facts(quantized)), tuple(kinds.most_common()),
        torch.equal(compiled(x), simulated), round(sqnr_db(expected, simulated), 1),
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Markdown: a summary and a line for each network."""
    whole = sum(not row.error and not row.islands for row in rows)
    same = sum(row.equal for row in rows)
    lines = [
        f"{len(rows)} networks: {whole} run in integers from end to end, {same} equal the "
        "simulator bit for bit.",
        "",
        "| network | pixels | operators | bit for bit | SQNR dB | in float |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row.cells)} |" for row in rows])


def load(path: Path) -> dict[tuple[str, int], Row]:
    """The rows of a file, if there is one."""
    if not path.exists():
        return {}
    rows = (
        Row(**{**row, "islands": tuple(map(tuple, row["islands"]))})
        for row in json.loads(path.read_text())
    )
    return {(row.name, row.size): row for row in rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Which networks run in integers.")
    parser.add_argument("--nets", nargs="*", default=[], metavar="[timm:]NET[@PIXELS]")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--document", type=Path, metavar="FILE", help="put the table there")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    options = parser.parse_args(arguments)
    rows = load(options.results)
    for net in options.nets:
        name, _, pixels = net.partition("@")
        key = name, int(pixels or SIZE)
        if key in rows and not options.again:
            continue
        rows[key] = measure(*key)
        print(*rows[key].cells, sep=" | ", flush=True)
        ordered = [asdict(rows[key]) for key in sorted(rows)]
        options.results.write_text(json.dumps(ordered, indent=1) + "\n")
    text = table([rows[key] for key in sorted(rows)])
    print(f"\n{text}")
    if options.document:
        rewrite(options.document, {"coverage": text})


if __name__ == "__main__":
    main()
