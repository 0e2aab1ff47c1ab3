"""Progress of long-running work: phases with a count, and lines of text. Silent by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Receives progress; this one ignores it."""

    def say(self, text: str) -> None:
        """Tell one thing that the user should know."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Begin a phase of `total` units; yields a function that takes the units just done."""
        yield lambda _: None
