"""The engines that are compared, each as a callable on one image batch.

Every engine takes the float NCHW input and returns float logits, on `threads` threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor, nn

from fxquant.model import Quantized
from fxquant.targets import Target
from tvm_backend.devices import cpu_flags

Engine = Callable[[Tensor], np.ndarray]


def torch_float(model: nn.Module, threads: int) -> Engine:
    """The float32 network in eager torch, in the memory format that is faster for convolutions."""
    torch.set_num_threads(threads)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(x: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return model(x.contiguous(memory_format=torch.channels_last)).numpy()

    return run


def x64_precision(flags: Collection[str]) -> str:
    """ONNX Runtime's `session.x64quantprecision` that computes the network and is fastest.

    Without VNNI its fastest kernels saturate sums of two products, so "1" makes it avoid them; with
    VNNI they are exact, and "1" would only make it several times slower.

    Args:
        flags: Feature flags of the processor.
    """
    return "0" if {"avx512_vnni", "avx_vnni"} & set(flags) else "1"


def onnx_runtime(model: bytes, threads: int) -> Engine:
    """ONNX Runtime on the CPU, all optimizations on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", x64_precision(cpu_flags()))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: np.asarray(session.run(None, {name: x.numpy()})[0])


def openvino(model: bytes, threads: int) -> Engine:
    """OpenVINO on the CPU, tuned for latency."""
    from openvino import Core

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    core = Core()
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    return lambda x: request.infer([x.numpy()], share_inputs=True)[0]


def tvm(quantized: Quantized, threads: int, target: Target | None = None) -> Engine:
    """This project's kernels, for this machine or for a target it can run."""
    import tvm_backend

    compiled = tvm_backend.compile(quantized, target, threads=threads)
    return lambda x: compiled(x).numpy()
