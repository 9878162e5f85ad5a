"""Types of arguments, and options that several commands have."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from fxquant import targets
from fxquant.config import Config, preset
from fxquant.errors import FxQuantError
from fxquant.targets import Target

TARGETS = {target.name: target for target in targets.ALL}


def config(text: str) -> Config:
    """`W4A8` as a configuration."""
    match = re.fullmatch(r"[wW](\d{1,2})[aA](\d{1,2})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no precision such as W8A8 or W4A8")
    try:
        return preset(int(match[1]), int(match[2]))
    except FxQuantError as error:
        raise argparse.ArgumentTypeError(error.what) from error


def target(text: str) -> Target:
    """A target by name."""
    if text not in TARGETS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TARGETS)}")
    return TARGETS[text]


def positive(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def shape(text: str) -> tuple[int, ...]:
    """`1,3,224,224` or `1x3x224x224`."""
    return tuple(positive(part) for part in re.split(r"[x,]", text))


def plane(text: str) -> tuple[int, int]:
    """`224` or `height,width`."""
    match shape(text):
        case (side,):
            return side, side
        case (height, width):
            return height, width
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 224 or 224,320")


def numbers(text: str) -> tuple[float, ...]:
    """`0.5` or `0.485,0.456,0.406`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error


def widths(text: str) -> tuple[int, ...]:
    """`2,4,8`: widths to try."""
    return tuple(positive(part) for part in text.split(","))


def minutes(text: str) -> float:
    """`0.5` minutes as seconds."""
    return 60 * float(text)


def add_time_limit(parser: argparse.ArgumentParser, work: str) -> None:
    """Add `--minutes`; the result is `time_limit`, in seconds, None without."""
    parser.add_argument(
        "--minutes",
        type=minutes,
        dest="time_limit",
        metavar="M",
        help=f"how long to {work} at most",
    )


def add_shapes(parser: argparse.ArgumentParser, model: str) -> None:
    """Add `--shape`, once for each input of a model that is described so."""
    parser.add_argument(
        "--shape", type=shape, action="append", default=[], metavar="N,C,H,W",
        help=f"input shape of {model}; repeated for models with several inputs",
    )  # fmt: skip


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    parser.add_argument(
        "--config", type=config, default="W8A8", metavar="WxAy",
        help="bits of weights and activations, e.g. W4A8 (default W8A8)",
    )  # fmt: skip


def add_data(parser: argparse.ArgumentParser, required: bool, samples: int = 512) -> None:
    """Add the options that name data and say how images are read."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", nargs="+", type=Path, required=required, metavar="PATH",
        help="a folder of images, an .npz with one array an input, or one .npy an input",
    )  # fmt: skip
    group.add_argument(
        "--samples", type=positive, default=samples, metavar="N",
        help=f"use at most N samples, spread over the data (default {samples})",
    )  # fmt: skip
    group.add_argument("--batch", type=positive, default=32, help="samples run at once")
    group.add_argument(
        "--size", type=plane, metavar="H[,W]", help="size of the images (default: the model's)"
    )
    group.add_argument(
        "--resize", type=positive, metavar="N",
        help="scale the shorter side to N before the centre is cut out",
    )  # fmt: skip
    group.add_argument(
        "--mean", type=numbers, default="0", metavar="M[,M,M]",
        help="subtracted from pixels in 0..1 (default 0)",
    )  # fmt: skip
    group.add_argument(
        "--std", type=numbers, default="1", metavar="S[,S,S]",
        help="pixels are then divided by it (default 1)",
    )  # fmt: skip
