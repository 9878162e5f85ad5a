"""Compile an .fxq file for a device."""

from __future__ import annotations

import argparse
from pathlib import Path

from fxquant.cli.arguments import TARGETS, target
from fxquant.cli.backend import backend, target_of
from fxquant.cli.models import read_quantized
from fxquant.cli.output import Result, make_folder, show_progress

EXAMPLES = """\
  fxquant compile net.fxq --output build/net
  fxquant compile net.fxq --target cortex_a55 --form standalone --output build/arm
"""
FORMS = ("relax", "standalone")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("network", help="an .fxq file")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to")
    parser.add_argument(
        "--target", type=target, metavar="NAME",
        help=f"the device: {', '.join(TARGETS)} (default: what the network was quantized for, "
        "else this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--form", choices=FORMS, default=FORMS[0],
        help="relax: a library that runs in TVM's runtime; standalone: C sources and objects that "
        "need neither TVM nor Python",
    )  # fmt: skip
    parser.add_argument(
        "--tuned", type=Path, metavar="FILE", help="schedules that `fxquant tune` found"
    )
    parser.add_argument("--name", help="name of a standalone library (default net)")
    parser.add_argument("--shared", action="store_true", help="also link a standalone .so")
    parser.add_argument(
        "--winograd", action=argparse.BooleanOptionalAction, default=None,
        help="Winograd kernels where they are faster, for 3x3 layers and 7x7 stems; their weights "
        "take up to 8 times the memory (default: not in the standalone form)",
    )  # fmt: skip


def execute(arguments: argparse.Namespace) -> Result:
    """Run the command."""
    make_folder(arguments.output)
    quantized = read_quantized(arguments.network)
    device = target_of(quantized, arguments.target)
    winograd = arguments.winograd
    if winograd is None:
        winograd = arguments.form != "standalone"
    compiled = backend().compile(
        quantized, device, tuned=arguments.tuned, progress=show_progress(), winograd=winograd
    )
    compiled.export(arguments.output, arguments.form, name=arguments.name, shared=arguments.shared)
    files = sorted(p for p in arguments.output.iterdir() if p.is_file())
    data = {
        "output": arguments.output, "target": device.name, "form": arguments.form,
        "files": {p.name: p.stat().st_size for p in files},
    }  # fmt: skip
    lines = [
        f"wrote {arguments.output} for {device.name}",
        *(f"  {p.name}: {p.stat().st_size / 1024:.1f} KiB" for p in files),
    ]
    if compiled.replayed is not None:
        data["untuned"] = compiled.replayed.untuned
        lines.append(str(compiled.replayed))
    return Result(data, "\n".join(lines))
