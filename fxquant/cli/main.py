"""Parsing, dispatch, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from fxquant.cli import (
    allocate,
    analyze,
    bench,
    compile,
    export,
    inspect,
    quantize,
    run,
    tune,
)
from fxquant.cli.output import plain
from fxquant.errors import FxQuantError
from fxquant.version import __version__

COMMANDS = (quantize, inspect, analyze, allocate, tune, compile, run, bench, export)
_INTERRUPTED = 130

_DESCRIPTION = "Quantize convolutional networks, look at them, compile and run them."
_EPILOG = """\
from a model to a library:
  fxquant quantize mynets:resnet --data images/ --size 224 --output net.fxq
  fxquant inspect net.fxq
  fxquant compile net.fxq --target cortex_a55 --output build/net

`fxquant COMMAND --help` has the options and examples of each command. Results go to stdout
(--json: one JSON document), everything else to stderr. Exit codes: 0 done, 1 the command failed
on its input, 2 wrong usage.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        "fxquant", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"fxquant {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            module.__name__.rpartition(".")[2], help=summary, description=summary,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        command.add_argument(
            "-v", "--verbose", action="store_true", help="log more, show tracebacks of errors"
        )
        command.set_defaults(function=module.execute)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or usage
        return stop.code if isinstance(stop.code, int) else 2
    try:
        with _logging(arguments.verbose), contextlib.redirect_stdout(sys.stderr):
            result = arguments.function(arguments)
        _print(json.dumps(plain(result.data), indent=1) if arguments.json else result.text)
        return 0
    except (FxQuantError, OSError) as error:
        if arguments.verbose:
            traceback.print_exception(error)
        print(f"fxquant: error: {error}", file=sys.stderr)
        if arguments.json:
            _print(json.dumps({"error": _described(error)}, indent=1))
        return 1
    except KeyboardInterrupt:
        print("fxquant: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _print(text: str) -> None:
    """To stdout; a reader that has gone away (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _described(error: Exception) -> dict[str, Any]:
    described = {"type": type(error).__name__, "what": str(error)}
    if isinstance(error, FxQuantError):
        described |= {k: getattr(error, k) for k in ("what", "where", "why", "remedy")}
    return described


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Show what the library logs while a command runs."""
    logger = logging.getLogger("fxquant")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
