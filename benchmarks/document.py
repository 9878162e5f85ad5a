"""Puts measured tables into a Markdown file, between markers.

<!-- table NAME -->
... replaced ...
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PLACE = re.compile(r"(<!-- table (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def rewritten(text: str, tables: Mapping[str, str]) -> str:
    """The text with its tables replaced.

    Raises:
        KeyError: It has a marker of a table that was not measured.
    """

    def replace(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in tables:
            raise KeyError(f"no table {name!r} was measured; there are {', '.join(tables)}")
        return f"{begin}\n{tables[name]}\n\n{end}"

    return _PLACE.sub(replace, text)


def rewrite(path: Path, tables: Mapping[str, str]) -> None:
    """Replace the tables of a file."""
    path.write_text(rewritten(path.read_text(), tables))
