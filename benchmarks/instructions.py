"""Instructions of standalone aarch64 programs, a layer and a network, against ONNX Runtime.

    python -m benchmarks.instructions --nets resnet18 mobilenet_v2 --target cortex_a76 \
        --onnxruntime-root FOLDER

The network runs as a program of its own under qemu-user with a counting plugin (`emulator.py`).
Kernels of the same name share code and counts. The loops of each kernel go through llvm-mca
(`inner_loops.py`). ONNX Runtime runs the same quantized network (ONNX, QDQ form) under the
same emulator, in a folder made by `aarch64_root.sh`; start-up cancels in the difference of runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fxquant
from benchmarks.costs import node_macs, step_macs
from benchmarks.emulator import Block, Counter, Symbol, by_symbol, read_symbols, run_tool
from benchmarks.inner_loops import cycles, executions, loops_of, read_instructions
from benchmarks.models import input_shape, network, quantize
from fxquant import targets
from fxquant.model import Quantized
from fxquant.onnx import qdq_model
from fxquant.targets import Target
from tvm_backend.lower import lower
from tvm_backend.program import Program, Step
from tvm_backend.standalone import DEFAULT_NAME, export_standalone
from tvm_backend.standalone.driver import kernel_symbol

NETS = ("resnet18", "mobilenet_v2")
ARM = tuple(t for t in targets.ALL if t.triple.startswith("aarch64"))
PROCESSORS = ("cortex-a53", "cortex-a55", "cortex-a76", "neoverse-n1", "neoverse-v1")
_DRIVER = ("run", "run_steps", f"{DEFAULT_NAME}_run")  # what calls the kernels
_DOT_PRODUCT, _MATRIX = "asimddp", "i8mm"
_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_RUNS = (1, 3)  # of the other engine
_NEGLIGIBLE = 1e-3  # share of a function's instructions


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One line of the table.

    Attributes:
        node: Graph node.
        kernel: Kernel name.
        macs: Multiply-accumulates.
        instructions: Of one call.
        macs_per_cycle: Of the hottest inner loop, by processor; empty without multiplications.
        cycles: In all loops, of one call, by processor.
    """

    node: str
    kernel: str
    macs: int
    instructions: int
    macs_per_cycle: Mapping[str, float]
    cycles: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LoopRates:
    """The loops of a function, by processor.

    Attributes:
        macs_per_cycle: Multiply-accumulates a cycle of the hottest inner one that multiplies.
        cycles: Of all iterations of all of them.
    """

    macs_per_cycle: Mapping[str, float] = field(default_factory=dict)
    cycles: Mapping[str, float] = field(default_factory=dict)


def layer_counts(
    program: Program, macs: Sequence[int], executed: Mapping[str, int],
    rates: Mapping[str, LoopRates],
) -> list[LayerCount]:  # fmt: skip
    """The table's lines.

    Args:
        program: The network; all its steps are kernels.
        macs: Multiply-accumulates of every step.
        executed: Instructions in each kernel, all calls together.
        rates: Of each kernel, all calls together.
    """
    calls = program.kernel_counts
    found = []
    for i, step in enumerate(program.steps):
        if isinstance(step, Step):
            name = step.kernel.name
            loop = rates.get(name, LoopRates())
            spent = {processor: total / calls[name] for processor, total in loop.cycles.items()}
            found.append(
                LayerCount(
                    step.node, name, macs[i], executed[name] // calls[name], loop.macs_per_cycle,
                    spent,
                )
            )  # fmt: skip
    return found


def table(found: Sequence[LayerCount], total: int) -> str:
    """The table as text, and the sum."""
    processors = next((list(x.macs_per_cycle) for x in found if x.macs_per_cycle), [])
    lines = [
        f"{'layer':28s} {'MMAC':>8s} {'k instr':>9s} {'per MAC':>8s} "
        + " ".join(f"{name:>11s}" for name in processors)
        + "  kernel"
    ]
    for layer in found:
        per_mac = f"{layer.instructions / layer.macs:8.4f}" if layer.macs else f"{'':8s}"
        rates = [layer.macs_per_cycle.get(name) for name in processors]
        lines.append(
            f"{layer.node[-28:]:28s} {layer.macs / 1e6:8.2f} {layer.instructions / 1e3:9.1f} "
            f"{per_mac} " + " ".join(f"{'' if r is None else f'{r:.2f}':>11s}" for r in rates)
            + f"  {layer.kernel}"
        )  # fmt: skip
    macs = sum(layer.macs for layer in found)
    lines.append(f"all: {total / 1e6:.1f} M instructions, {total / max(macs, 1):.4f} per MAC")
    if processors:
        spent = ", ".join(f"{name} {loop_cycles(found, name) / 1e6:.2f}" for name in processors)
        lines.append(f"M cycles of all loops: {spent}")
    return "\n".join(lines)


def loop_cycles(found: Sequence[LayerCount], processor: str) -> float:
    """Cycles of all loops of a network, by llvm-mca's model of a processor."""
    return sum(x.cycles.get(processor, 0.0) for x in found)


def loop_rates(
    program: Path, symbols: Sequence[Symbol], blocks: Sequence[Block], processors: Sequence[str]
) -> dict[str, LoopRates]:
    """The loops of every function."""
    disassemble = ["aarch64-linux-gnu-objdump", "--disassemble", "--no-show-raw-insn"]
    runs = executions(blocks)
    rates: dict[str, LoopRates] = {}
    for symbol in symbols:
        span = [f"--start-address={symbol.start}", f"--stop-address={symbol.stop}"]
        loops = loops_of(read_instructions(run_tool([*disassemble, *span, str(program)])), runs)
        executed = sum(loop.executed for loop in loops)
        loops = [loop for loop in loops if loop.executed > _NEGLIGIBLE * executed]
        spent = {p: [cycles(loop, p) for loop in loops] for p in processors}
        hottest = next((i for i, x in enumerate(loops) if x.innermost and x.macs), None)
        rates[symbol.name] = LoopRates(
            {} if hottest is None else {p: loops[hottest].macs / spent[p][hottest] for p in spent},
            {p: sum(x.iterations * c for x, c in zip(loops, spent[p], strict=True)) for p in spent},
        )
    return rates


def count_ours(
    quantized: Quantized, image: torch.Tensor, target: Target, processors: Sequence[str],
    counter: Counter, folder: Path,
) -> tuple[list[LayerCount], int]:  # fmt: skip
    """Every layer, and the instructions of one inference."""
    graph = quantized.integer
    program = lower(graph, target)
    macs = step_macs(program, node_macs(graph))
    standalone = export_standalone(program, folder, DEFAULT_NAME)
    binary = standalone.build_example()
    with counter.environment() as counts:
        standalone.run([image])
        blocks = counts()
    kernels = {kernel_symbol(DEFAULT_NAME, name): name for name in program.kernels}
    symbols = [
        replace(symbol, name=kernels.get(symbol.name, symbol.name))
        for symbol in read_symbols(run_tool(["nm", "--defined-only", "--print-size", str(binary)]))
        if symbol.name in kernels or symbol.name in _DRIVER
    ]
    executed = by_symbol(blocks, symbols)
    ours = [symbol for symbol in symbols if symbol.name in program.kernels]
    rates = loop_rates(binary, ours, blocks, processors)
    return layer_counts(program, macs, executed, rates), sum(executed.values())


def count_onnx_runtime(
    quantized: Quantized, image: torch.Tensor, target: Target, root: Path, counter: Counter,
    folder: Path,
) -> int:  # fmt: skip
    """Instructions of one inference of ONNX Runtime."""
    model, data = folder / "model.onnx", folder / "input.npy"
    model.write_bytes(qdq_model(quantized, (image,)))
    np.save(data, image.numpy())
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(cpu_description(target))
    processor = {(): "cortex-a53", (_DOT_PRODUCT,): "cortex-a76"}.get(features(target), "max")
    base = [
        "qemu-aarch64", "-cpu", processor, "-L", str(root), "-E", f"PYTHONPATH={root / 'site'}",
        "-E", f"PYTHONHOME={root / 'usr'}", "-E", "OMP_NUM_THREADS=1",
        "-E", "OPENBLAS_NUM_THREADS=1", str(root / "usr/bin/python3.11"),
        str(Path(__file__).with_name("run_onnx.py")), str(model), str(data),
    ]  # fmt: skip
    few, many = (sum(b.executed for b in counter.run([*base, str(runs)])) for runs in _RUNS)
    return (many - few) // (_RUNS[1] - _RUNS[0])


def features(target: Target) -> tuple[str, ...]:
    """Multiplication extensions of a target's core."""
    name = target.mac.name
    if name in ("usdot", "usmmla", "smmla"):
        return (_DOT_PRODUCT, _MATRIX)
    return (_DOT_PRODUCT,) if name == "sdot" else ()


def cpu_description(target: Target) -> str:
    """What /proc/cpuinfo says on such a core, for programs that choose kernels by it."""
    part = "0xd0c" if features(target) else "0xd03"
    lines = {
        "processor": "0", "Features": " ".join([_FEATURES, *features(target)]),
        "CPU implementer": "0x41", "CPU architecture": "8", "CPU variant": "0x3",
        "CPU part": part, "CPU revision": "1",
    }  # fmt: skip
    return "".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n"


def measure(
    net: str, bits: int, target: Target, processors: Sequence[str], root: Path | None
) -> dict[str, Any]:
    """Counts of one network whose weights and activations have `bits` bits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape(net)[1:], generator=generator)
    config = fxquant.preset(bits, bits)
    quantized = quantize(network(net), images, config=config, target=target)
    with tempfile.TemporaryDirectory(prefix="fxquant-") as name:
        folder = Path(name)
        counter, image = Counter(folder), images[:1]
        found, total = count_ours(quantized, image, target, processors, counter, folder / "ours")
        print(f"{net} W{bits}A{bits} on {target}\n{table(found, total)}", flush=True)
        result = {
            "net": net, "bits": bits, "target": target.name, "instructions": total,
            "cycles": {name: loop_cycles(found, name) for name in processors},
            "layers": [asdict(x) for x in found],
        }  # fmt: skip
        if root is not None:
            other = count_onnx_runtime(quantized, image, target, root, counter, folder)
            print(f"ONNX Runtime: {other / 1e6:.1f} M instructions, {other / total:.2f} times ours")
            result["onnxruntime"] = other
    print(flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Count instructions of aarch64 programs.")
    parser.add_argument("--nets", nargs="+", default=list(NETS), help="torchvision networks")
    parser.add_argument(
        "--bits", nargs="+", type=int, choices=range(2, 9), default=[8],
        help="of weights and activations; several are measured one after the other",
    )  # fmt: skip
    parser.add_argument("--target", choices=[t.name for t in ARM], default="cortex_a76")
    parser.add_argument(
        "--processors", nargs="*", default=list(PROCESSORS), help="models of llvm-mca"
    )
    parser.add_argument("--onnxruntime-root", type=Path, help="folder made by aarch64_root.sh")
    parser.add_argument("--output", type=Path, default=Path("build/instructions.json"))
    options = parser.parse_args()
    target = next(t for t in ARM if t.name == options.target)
    root = options.onnxruntime_root
    cells = [
        measure(net, bits, target, options.processors, root)
        for net in options.nets
        for bits in options.bits
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(cells, indent=1))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
