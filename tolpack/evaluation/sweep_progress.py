"""How far a row of measurements is, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tolpack.runtime.progress import Reporter

# What takes less was measured before, and tells nothing of the others.
_LEAST_SECONDS = 0.2


class SweepProgress:
    """Counts steps and tells about the time that is left.

    Parameters
    ----------
    kinds : sequence of str
        The kind of each step to come; steps of a kind take about the same time.
    reporter : Reporter
        Is told.
    """

    def __init__(self, kinds: Sequence[str], reporter: Reporter) -> None:
        self._kinds = kinds
        self._reporter = reporter
        self._taken: dict[str, list[float]] = {}
        self._done = 0
        self._begin = 0.0

    def begin(self, what: str) -> None:
        """Tell which step begins."""
        self._begin = time.perf_counter()
        self._reporter.say(f"[{self._done + 1}/{len(self._kinds)}] {what}")

    def end(self, result: str) -> None:
        """Tell what it gave, and how long the others may take."""
        seconds = time.perf_counter() - self._begin
        if seconds > _LEAST_SECONDS:
            self._taken.setdefault(self._kinds[self._done], []).append(seconds)
        self._done += 1
        minutes = sum(map(self._expected, self._kinds[self._done :])) / 60
        left = f"; about {minutes:.0f} min left" if minutes > 0.5 else ""
        self._reporter.say(f"    {result}{left}")

    def _expected(self, kind: str) -> float:
        """Seconds: the mean of the same kind, else of all."""
        taken = self._taken.get(kind) or [one for own in self._taken.values() for one in own]
        return sum(taken) / len(taken) if taken else 0.0
