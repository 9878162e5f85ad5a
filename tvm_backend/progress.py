"""Progress of a compilation on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def reporter(show: bool) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each piece of work."""
    if not show:
        yield lambda _: None
        return
    with tqdm(desc="compile", unit=" kernels") as bar:

        def report(name: str) -> None:
            bar.set_postfix_str(name[:40], refresh=False)
            bar.update()

        yield report
