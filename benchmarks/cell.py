"""One cell of the latency table: a network, a number of threads and a batch, in its own process.

Thread pools are sized when a process starts, hence the processes. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import fxquant
from benchmarks import peers
from benchmarks.models import input_shape, network, quantize
from fxquant import targets
from fxquant.inspection import interleaved
from fxquant.onnx import qdq_model

ENGINES = ("ours", "torch_fp32", "onnxruntime_int8", "openvino_int8")
# Kernels for another target that this machine can run, by the target's name.
OURS_FOR = {f"ours:{t.name}": t for t in targets.ALL if t.is_x86}
OURS_INT7 = "ours_int7"  # another network: timed, not compared; only when asked for
MAY_SATURATE = ("openvino_int8",)  # without VNNI sums of two products saturate at int16
# An engine computes the same network if it is as close to the Q/DQ graph as this, in dB, or about
# as close as the float network is: nets with random weights amplify every rounding difference.
CLOSE_ENOUGH, MARGIN = 20.0, 3.0
PAUSE, CALLS = 0.02, 5


def environment(threads: int) -> dict[str, str]:
    """Variables that size the thread pools, and keep glibc from returning memory every call."""
    sizes = dict.fromkeys(("OMP_NUM_THREADS", "TVM_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    huge = str(1 << 30)
    return {**os.environ, **sizes, "MALLOC_MMAP_THRESHOLD_": huge, "MALLOC_TRIM_THRESHOLD_": huge}


def sqnr(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    noise = float(np.square(reference.astype(np.float64) - value).sum())
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


def measure(
    net: str, threads: int, rounds: int, batch: int, engines: list[str]
) -> dict[str, object]:
    """Latencies and agreement of the engines on one network."""
    torch.set_num_threads(threads)
    model = network(net)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(max(4, batch), *input_shape(net)[1:], generator=generator)
    x = images[:batch]
    quantized = quantize(model, images, batch)
    makers: dict[str, Callable[[], peers.Engine]] = {
        "ours": lambda: peers.tvm(quantized, threads),
        OURS_INT7: lambda: peers.tvm(quantize(model, images, batch, fxquant.W7A7), threads),
        "torch_fp32": lambda: peers.torch_float(model, threads),
        "onnxruntime_int8": lambda: peers.onnx_runtime(qdq_model(quantized, (images,)), threads),
        "openvino_int8": lambda: peers.openvino(qdq_model(quantized, None), threads),
    }
    for name, target in OURS_FOR.items():
        makers[name] = partial(peers.tvm, quantized, threads, target)
    built = {name: makers[name]() for name in engines}
    same = {name: engine for name, engine in built.items() if name != OURS_INT7}
    agreement = _agreement(net, quantized, model, same, x)
    calls = {name: (lambda run=run: run(x)) for name, run in built.items()}
    timings = interleaved(calls, rounds, warmup=2, calls=CALLS, pause=PAUSE)
    return {
        "net": net,
        "threads": threads,
        "rounds": rounds,
        "batch": batch,
        "sqnr_to_qdq": agreement,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
    }


def _agreement(
    net: str,
    quantized: fxquant.Quantized,
    model: nn.Module,
    engines: dict[str, peers.Engine],
    x: Tensor,
) -> dict[str, float]:
    """SQNR of every engine to the Q/DQ graph in dB; a wrong network is not timed, or named."""
    with torch.no_grad():
        expected, original = quantized.graph_module(x).numpy(), model(x).numpy()
    bound = min(CLOSE_ENOUGH, sqnr(expected, original) - MARGIN)
    result = {name: sqnr(expected, run(x)) for name, run in engines.items()}
    for name, value in result.items():
        if value < bound:
            message = f"{net}: {name} computes another network: {value:.1f} < {bound:.1f} dB"
            if name not in MAY_SATURATE:
                raise SystemExit(message)
            print(message, file=sys.stderr)
    return result


if __name__ == "__main__":
    name, thread_count, round_count, batch_size, *chosen = sys.argv[1:]
    numbers = int(thread_count), int(round_count), int(batch_size)
    print(json.dumps(measure(name, *numbers, chosen or [*ENGINES])))
