"""From a user's model to the project's dialect: capture, then normalize."""

from fxquant.ir.frontend.capture import capture
from fxquant.ir.frontend.normalize import normalize

__all__ = ["capture", "normalize"]
