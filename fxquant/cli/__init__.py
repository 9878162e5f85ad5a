"""The command line: `fxquant` or `python -m fxquant`; one file a sub-command.

Results go to stdout, as text or (`--json`) as one JSON document; progress, warnings and errors go
to stderr. Exit codes: 0 done, 1 the command failed on its input, 2 wrong usage.
"""

from fxquant.cli.main import main

__all__ = ["main"]
