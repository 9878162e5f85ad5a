"""Any LLVM target: plain widening multiplies that LLVM vectorizes as it can."""

from fxquant.targets.base import Target
from fxquant.targets.idioms import WIDEN

GENERIC = Target("generic", (), WIDEN, 128)
