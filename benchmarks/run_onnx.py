"""Runs an ONNX model a few times with ONNX Runtime on one thread: to be counted in an emulator.

python run_onnx.py MODEL.onnx INPUT.npy RUNS

Imports nothing but numpy and onnxruntime.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime


def main() -> None:
    model, data, runs = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(data)}
    for _ in range(int(runs)):
        session.run(None, feed)


if __name__ == "__main__":
    main()
