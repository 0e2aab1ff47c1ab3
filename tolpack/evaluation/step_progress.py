"""Progress of a sweep or a study, step by step, with the time that is left.

Steps differ in time by a factor of a hundred: a pack that is planned by loss takes minutes, one of
4 bits seconds. So each has a predicted cost, and the seconds for each unit of it are learned: of
steps of its own kind, and, as long as few of those were timed, of all steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tolpack.runtime.progress import Reporter

# A shorter step was cached: its time says nothing about the others.
_LEAST_SECONDS = 0.2
# Weight of all steps against those of a kind, in steps of that kind.
_PRIOR_STEPS = 0.25
# Part of the predicted cost that must be done before a time is told.
_LEAST_DONE = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """A step to come: its kind, and its predicted cost, in any unit that all steps share.

    ``once`` is the cost of what this step does for all that follow.
    """

    kind: str
    cost: float
    once: float = 0.0


class StepProgress:
    """Counts steps, and reports the time that the remaining ones may take.

    Parameters
    ----------
    steps : sequence of Step
        The steps to come, in their order.
    reporter : Reporter
        Receives a line at the begin and at the end of each step.
    """

    def __init__(self, steps: Sequence[Step], reporter: Reporter) -> None:
        self._steps = tuple(steps)
        self._reporter = reporter
        self._timed: list[tuple[Step, float, float]] = []
        self._done = 0
        self._begin = 0.0

    def begin(self, name: str) -> None:
        """Report which step begins."""
        self._begin = time.perf_counter()
        self._reporter.say(f"[{self._done + 1}/{len(self._steps)}] {name}")

    def end(self, result: str, once_seconds: float = 0.0) -> None:
        """Report the step's result, and the time that is left.

        ``once_seconds``: how much of the step's time no other step takes again.
        """
        seconds = time.perf_counter() - self._begin
        once_seconds = min(once_seconds, seconds)
        if seconds > _LEAST_SECONDS:
            self._timed.append((self._steps[self._done], seconds - once_seconds, once_seconds))
        self._done += 1
        left = self.seconds_left
        told = f"; about {format_left(left)} left" if left is not None and left > 5 else ""
        self._reporter.say(f"    {result}{told}")

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the remaining steps may take; ``None`` while too little was done."""
        done, whole = (
            sum(one.cost + one.once for one in steps)
            for steps in (self._steps[: self._done], self._steps)
        )
        if not self._timed or done < _LEAST_DONE * whole:
            return None
        overall = sum(own + once for _, own, once in self._timed) / sum(
            step.cost + (step.once if once else 0.0) for step, _, once in self._timed
        )
        return sum(
            self._rate(step, overall) * step.cost + overall * step.once
            for step in self._steps[self._done :]
        )

    def _rate(self, step: Step, overall: float) -> float:
        """Return the seconds for a unit of cost of steps of a kind."""
        own = [(one.cost, seconds) for one, seconds, _ in self._timed if one.kind == step.kind]
        prior = _PRIOR_STEPS * step.cost
        seconds, cost = sum(seconds for _, seconds in own), sum(cost for cost, _ in own)
        return (seconds + overall * prior) / (cost + prior)


def format_left(seconds: float) -> str:
    """Write seconds in steps of ten, beyond two minutes in minutes."""
    if seconds < 120:
        return f"{max(10.0, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min"
