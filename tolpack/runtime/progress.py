"""Progress of long-running work: phases with a count, and lines of text. Silent by default."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Receives progress; this one ignores it."""

    def say(self, text: str) -> None:
        """Tell one thing that the user should know."""

    def say_once(self, text: str) -> None:
        """Tell one thing that several parts of the work may come upon; `KeptWarnings` tells it
        once.
        """
        self.say(text)

    def warn(self, text: str) -> None:
        """Tell what makes a result doubtful, and what to do about it."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Begin a phase of `total` units; yields a function that takes the units just done."""
        yield lambda _: None


class PhaseTimes(Reporter):
    """Passes progress on, and keeps how long phases took.

    Parameters
    ----------
    reporter : Reporter, optional
        Receives the progress.

    Attributes
    ----------
    seconds : list of tuple of str and float
        The name of each phase that has ended, and how long it took.
    """

    def __init__(self, reporter: Reporter | None = None) -> None:
        self.seconds: list[tuple[str, float]] = []
        self._reporter = reporter or Reporter()

    def say(self, text: str) -> None:
        """See `Reporter`."""
        self._reporter.say(text)

    def say_once(self, text: str) -> None:
        """See `Reporter`."""
        self._reporter.say_once(text)

    def warn(self, text: str) -> None:
        """See `Reporter`."""
        self._reporter.warn(text)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """See `Reporter`."""
        begin = time.perf_counter()
        with self._reporter.phase(name, total, unit) as done:
            yield done
        self.seconds.append((name, time.perf_counter() - begin))


class KeptWarnings(Reporter):
    """Passes progress on, and keeps the warnings for a result.

    Parameters
    ----------
    reporter : Reporter, optional
        Receives the progress.

    Attributes
    ----------
    warnings : list of str
        The warnings so far, each once, in order.
    """

    def __init__(self, reporter: Reporter | None = None) -> None:
        self.warnings: list[str] = []
        self._reporter = reporter or Reporter()
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """See `Reporter`."""
        self._reporter.say(text)

    def say_once(self, text: str) -> None:
        """See `Reporter`."""
        if text not in self._said:
            self._said.add(text)
            self._reporter.say_once(text)

    def warn(self, text: str) -> None:
        """See `Reporter`."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._reporter.warn(text)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """See `Reporter`."""
        with self._reporter.phase(name, total, unit) as done:
            yield done
