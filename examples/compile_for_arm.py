"""Compile for an ARM board on this machine, and check the result without the board.

    python -m examples.compile_for_arm [--target CORTEX_A53]

Writes build/arm/: digits.h, digits.a, main.c and what else belongs to the C library. Its example
program then runs under qemu-user and must give exactly the integers of the reference interpreter.
Needs the cross compiler and the emulator of the target (Debian: gcc-aarch64-linux-gnu, qemu-user).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import fxquant
import tvm_backend
from examples.digits_quickstart import DigitsNet, digits, kib, train


def main(target: fxquant.targets.Target, smoke: bool, output: Path) -> None:
    torch.manual_seed(0)
    train_images, train_labels, images, _ = digits()
    model = DigitsNet()
    train(model, train_images, train_labels, epochs=1 if smoke else 15)
    quantized = fxquant.quantize(model, train_images[:256].split(64), target=target, progress=False)

    compiled = tvm_backend.compile(quantized, target)
    folder = compiled.export(output, form="standalone", name="digits")
    manifest = json.loads((folder / "manifest.json").read_text())
    print(f"{target}: {folder}/digits.a {kib(folder / 'digits.a')}")
    memory, weights = manifest["memory"], manifest["weights"]
    print(f"arena {memory['arena_bytes']} bytes, weights {weights['bytes']} bytes, kernels:")
    for kernel in manifest["kernels"]:
        print(f"  {kernel['symbol']}")

    x = images[: 2 if smoke else 16]
    equal = torch.equal(compiled.run_emulated(x), quantized(x))
    print(
        f"{target.emulator or 'this machine'} == reference: {equal} (bit for bit, {len(x)} images)"
    )
    if not equal:
        raise SystemExit("the compiled network differs from the reference")


if __name__ == "__main__":
    names = [t.name.upper() for t in fxquant.targets.ALL]
    parser = argparse.ArgumentParser(description="Compile a digit classifier for an ARM board.")
    parser.add_argument("--target", choices=names, default="CORTEX_A55")
    parser.add_argument("--smoke", action="store_true", help="less training, fewer images")
    parser.add_argument("--output", type=Path, default=Path("build/arm"))
    options = parser.parse_args()
    main(getattr(fxquant.targets, options.target), options.smoke, options.output)
