"""Every layer of a quantized network with cold weights: GOP/s, share of the peak, bytes.

    python -m benchmarks.kernels --nets resnet18 --target x86_avx2 --rounds 20

The whole network runs kernel by kernel (`execution.py`), so weights come from where an inference
leaves them and activations from the kernel before. The peak of each multiply-accumulate idiom in
use (`peak.py`) is measured before every run of the network, and a layer's share of the peak of its
idiom is taken within the round, since clocks drift. Interruptions only add time: of all rounds the
quartile on the fast side counts. A GOP is 10^9 multiplications and additions; bytes are the least a
layer must move. Operations are those of the direct convolution, so Winograd kernels, which multiply
less, may exceed the peak.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.costs import kernel_bytes, node_macs, step_macs
from benchmarks.execution import Execution
from benchmarks.models import input_shape, network, quantize
from benchmarks.peak import Peak, peaks
from benchmarks.tile_peak import tile_peaks
from fxquant import targets
from fxquant.targets import Target
from tvm_backend import host_target
from tvm_backend.devices import cpu_name
from tvm_backend.lower import lower
from tvm_backend.macs import MACS, Mac, wide_mac_of
from tvm_backend.program import Program, Step
from tvm_backend.threads import check_threads, use_threads

NETS = ("resnet18", "resnet50", "mobilenet_v2")


@dataclass(frozen=True, slots=True)
class Layer:
    """One line of the table.

    Attributes:
        node: Graph node.
        kernel: Kernel name, or "" for a float island (run by torch).
        macs: Multiply-accumulates.
        nbytes: Bytes it must move.
        microseconds: Time, the lower quartile of the rounds.
        share: Share of the peak, the upper quartile; 0 without multiplications.
    """

    node: str
    kernel: str
    macs: int
    nbytes: int
    microseconds: float
    share: float

    @property
    def gops(self) -> float:
        """10^9 operations a second, two a multiply-accumulate."""
        return 2 * self.macs / self.microseconds / 1e3

    @property
    def bandwidth(self) -> float:
        """10^9 bytes a second."""
        return self.nbytes / self.microseconds / 1e3


def layers(
    program: Program, macs: Sequence[int], seconds: np.ndarray, peak: Mapping[str, Sequence[float]]
) -> list[Layer]:
    """The table's lines from measured times.

    Args:
        program: The network.
        macs: Multiply-accumulates of every step.
        seconds: `[rounds, steps]`.
        peak: Multiply-accumulates a second of each idiom in each round.
    """
    times = np.percentile(seconds, 25, axis=0) * 1e6
    found = []
    for i, step in enumerate(program.steps):
        if not isinstance(step, Step):
            found.append(Layer(step.name, "", 0, 0, float(times[i]), 0.0))
            continue
        share = 0.0
        if macs[i]:
            rates = macs[i] / seconds[:, i] / np.asarray(peak[idiom_name(step.kernel.name)])
            share = float(np.percentile(rates, 75))
        found.append(
            Layer(
                step.node, step.kernel.name, macs[i], kernel_bytes(step.kernel), float(times[i]),
                share,
            )
        )  # fmt: skip
    return found


def idiom_name(kernel: str) -> str:
    """The idiom at the end of a kernel's name."""
    return kernel.rpartition("__")[2]


def macs_of(target: Target) -> dict[str, Mac]:
    """Everything kernels of a target multiply with, by the name of the idiom."""
    winograd = wide_mac_of(target, "uint32")
    return {mac.idiom.name: mac for mac in (*MACS.values(), winograd)}


def table(found: Sequence[Layer], peak_gops: Mapping[str, float]) -> str:
    """The table as text: layers in order, the sum, the peaks, and time by kind of kernel."""
    lines = [
        f"{'layer':28s} {'MMAC':>8s} {'us':>9s} {'GOP/s':>8s} {'peak':>5s} {'KB':>8s} {'GB/s':>6s}"
        "  kernel"
    ]
    for layer in found:
        lines.append(
            f"{layer.node[-28:]:28s} {layer.macs / 1e6:8.2f} {layer.microseconds:9.1f} "
            f"{layer.gops:8.1f} {layer.share:5.0%} {layer.nbytes / 1e3:8.1f} "
            f"{layer.bandwidth:6.1f}  {layer.kernel or 'float island'}"
        )
    microseconds = sum(layer.microseconds for layer in found)
    gops = 2 * sum(layer.macs for layer in found) / microseconds / 1e3
    lines.append(f"all: {microseconds / 1e3:.2f} ms, {gops:.1f} GOP/s")
    lines += [f"  peak of {name}: {value:.1f} GOP/s" for name, value in peak_gops.items()]
    for name, part in sorted(by_kind(found).items(), key=lambda pair: -pair[1]):
        lines.append(f"  {name:20s} {part / 1e3:8.2f} ms {part / microseconds:5.1%}")
    return "\n".join(lines)


def by_kind(found: Sequence[Layer]) -> dict[str, float]:
    """Microseconds by kind of kernel."""
    total: dict[str, float] = {}
    for layer in found:
        total[kind(layer.kernel)] = total.get(kind(layer.kernel), 0.0) + layer.microseconds
    return total


def kind(kernel: str) -> str:
    """The operator in a kernel's name, whose grammar is `<types>_<operator>_<shapes>...`."""
    match = re.match(r"(?:(?:q[us]|qc|[sf])\d+w?_)+(.+?)_\d", kernel)
    return match.group(1) if match else "float island"


def best_peak(candidates: Sequence[Peak], calls: int = 5) -> float:
    """Multiply-accumulates a second of the fastest register tile."""
    return max(c.macs / min(_seconds(c.run) for _ in range(calls)) for c in candidates)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(net: str, target: Target, rounds: int, threads: int) -> dict[str, Any]:
    """All layers of one network."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape(net)[1:], generator=generator)
    quantized = quantize(network(net), images, target=target)
    graph = quantized.integer
    program = lower(graph, target)
    counts = step_macs(program, node_macs(graph))
    use_threads(check_threads(threads))
    execution = Execution(program, [images[:1]])
    used = {
        idiom_name(s.kernel.name)
        for s, m in zip(program.steps, counts, strict=True)
        if m and isinstance(s, Step)
    }
    fastest = {
        name: sorted(peaks(target, mac, threads), key=lambda c: -best_peak([c]))[:2]
        for name, mac in macs_of(target).items()
        if name in used
    }
    if target.tiles is not None and target.tiles.name in used:
        fastest[target.tiles.name] = tile_peaks(target, threads)
    execution.run()
    seconds = []
    peak: dict[str, list[float]] = {name: [] for name in fastest}
    for _ in range(rounds):
        for name, candidates in fastest.items():
            peak[name].append(best_peak(candidates))
        seconds.append(execution.run())
    found = layers(program, counts, np.array(seconds), peak)
    peak_gops = {name: 2 * float(np.median(rates)) / 1e9 for name, rates in peak.items()}
    print(f"{net} on {target}, {threads} thread(s)\n{table(found, peak_gops)}\n", flush=True)
    records = [{**asdict(x), "gops": x.gops} for x in found]
    return {"net": net, "threads": threads, "peak_gops": peak_gops, "layers": records}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every layer with cold weights.")
    parser.add_argument("--nets", nargs="+", default=list(NETS), help="torchvision networks")
    parser.add_argument("--target", choices=[t.name for t in targets.ALL], help="default: this CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("build/kernels.json"))
    options = parser.parse_args()
    named = {t.name: t for t in targets.ALL}
    target = named[options.target] if options.target else host_target()
    torch.set_num_threads(options.threads)
    cells = [measure(net, target, options.rounds, options.threads) for net in options.nets]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"cpu": cpu_name(), "target": target.name, "nets": cells}
    options.output.write_text(json.dumps(result, indent=1))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
