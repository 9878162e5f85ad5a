"""`python -m fxquant`: the command line."""

import sys

from fxquant.cli import main

if __name__ == "__main__":
    sys.exit(main())
