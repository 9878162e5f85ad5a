"""A C program with a quantized network inside: no Python and no TVM where it runs.

    python -m examples.c_program.export
    build/c_program/classify build/c_program/images.bin

Exports the digit classifier as digits.h and digits.a, builds `classify.c` with the Makefile beside
it, runs the program, and compares its output with the reference interpreter. For a board, compile
for its target, and make the program there or with a cross compiler (see the Makefile).
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import torch

import fxquant
import tvm_backend
from examples.digits_quickstart import DigitsNet, accuracy, digits, kib, train


def main(smoke: bool, output: Path) -> None:
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()
    images, labels = images[:20], labels[:20]
    model = DigitsNet()
    train(model, train_images, train_labels, epochs=1 if smoke else 15)
    quantized = fxquant.quantize(model, train_images[:256].split(64), progress=False)
    tvm_backend.compile(quantized).export(output, form="standalone", name="digits")
    images.numpy().tofile(output / "images.bin")

    here = Path(__file__).parent
    subprocess.run(["make", "-s", "-C", here, f"LIBRARY={output.resolve()}"], check=True)
    command = [output.resolve() / "classify", output / "images.bin"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    classes, values = zip(*(line.split() for line in lines[:-1]), strict=True)

    expected = quantized(images)
    equal = classes == tuple(str(int(c)) for c in expected.argmax(1))
    equal &= torch.equal(torch.tensor([float(v) for v in values]), expected.amax(1))
    print(f"{output}/classify {kib(output / 'classify')}: {len(classes)} images, "
          f"top-1 {accuracy(expected, labels):.1f} %")  # fmt: skip
    print(f"C program == reference: {equal}")
    if not equal:
        raise SystemExit("the C program differs from the reference")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build a C program around a quantized network.")
    parser.add_argument("--smoke", action="store_true", help="less training")
    parser.add_argument("--output", type=Path, default=Path("build/c_program"))
    options = parser.parse_args()
    main(options.smoke, options.output)
