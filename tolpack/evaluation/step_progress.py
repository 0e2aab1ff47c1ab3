"""Progress of a sweep or a study, step by step, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tolpack.runtime.progress import Reporter

# A shorter step was cached: its time says nothing about the others.
_LEAST_SECONDS = 0.2


class StepProgress:
    """Counts steps, and reports the time that the remaining ones may take.

    Parameters
    ----------
    classes : sequence of str
        A class for each step to come; steps of a class take about the same time.
    reporter : Reporter
        Receives a line at the begin and at the end of each step.
    """

    def __init__(self, classes: Sequence[str], reporter: Reporter) -> None:
        self._classes = classes
        self._reporter = reporter
        self._seconds: dict[str, list[float]] = {}
        self._done = 0
        self._begin = 0.0

    def begin(self, name: str) -> None:
        """Report which step begins."""
        self._begin = time.perf_counter()
        self._reporter.say(f"[{self._done + 1}/{len(self._classes)}] {name}")

    def end(self, result: str) -> None:
        """Report the step's result, and the time that is left."""
        seconds = time.perf_counter() - self._begin
        if seconds > _LEAST_SECONDS:
            self._seconds.setdefault(self._classes[self._done], []).append(seconds)
        self._done += 1
        minutes = sum(map(self._expected_seconds, self._classes[self._done :])) / 60
        left = f"; about {minutes:.0f} min left" if minutes > 0.5 else ""
        self._reporter.say(f"    {result}{left}")

    def _expected_seconds(self, name: str) -> float:
        """Return the mean of the steps of a class, or of all steps if none of it was timed."""
        timed = self._seconds.get(name) or [one for own in self._seconds.values() for one in own]
        return sum(timed) / len(timed) if timed else 0.0
