"""The error tree. Every message says what happened, where, why, and what to do about it."""

from __future__ import annotations


class FxQuantError(Exception):
    """Base of all errors raised on purpose by fxquant and tvm_backend.

    Args:
        what: What went wrong, one sentence.
        where: The place: a node, module path, source line, file or argument.
        why: The reason it cannot work.
        remedy: What the user can do.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        lines = [what]
        lines += [f"  where: {where}"] if where else []
        lines += [f"  why: {why}"] if why else []
        lines += [f"  remedy: {remedy}"] if remedy else []
        super().__init__("\n".join(lines))


class CaptureError(FxQuantError):
    """The model could not be turned into a graph."""


class ConfigError(FxQuantError, ValueError):
    """A configuration, spec or argument is invalid."""


class CalibrationError(FxQuantError):
    """Calibration data or calibration state is unusable."""


class StageError(FxQuantError):
    """A graph is not in the stage an operation needs, or breaks its stage's rules."""


class NumericsError(FxQuantError, ValueError):
    """A number is outside the domain of the integer arithmetic."""


class UnsupportedError(FxQuantError):
    """A well-formed input this version cannot handle."""


class FileFormatError(FxQuantError):
    """A file is corrupt, truncated, of a newer version or hostile."""


class TargetError(FxQuantError):
    """A target is unknown or cannot be built or run here."""
