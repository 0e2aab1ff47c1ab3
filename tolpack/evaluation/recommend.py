"""Which setting to ship, for what a user is ready to lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tolpack.evaluation.sweep_runner import SweepPoint

# Percent of perplexity.
_LIMITS = (0.1, 0.25, 0.5, 1.0, 3.0)
# An increase counts with so many of its standard errors.
_ERRORS = 2
_LEAST_WINDOWS = 10


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The smallest pack that costs at most ``limit_pct`` of perplexity, two standard errors above
    what was measured; ``plain``: the smallest of those without a basis to multiply by, if another.
    """

    limit_pct: float
    best: SweepPoint
    plain: SweepPoint | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = None if self.plain is None else self.plain.setting.options
        return {"limit_pct": self.limit_pct, "options": self.best.setting.options,
                "bytes": self.best.score.bytes, "options_without_basis": plain}  # fmt: skip


def recommend(points: Sequence[SweepPoint], windows: int) -> tuple[Recommendation, ...]:
    """Choose for limits from 0.1 to 3 %; limits that nothing meets are left out.

    Nothing is chosen from fewer than ten windows, whose standard errors mean little.
    """
    found: list[Recommendation] = []
    if windows < _LEAST_WINDOWS:
        return ()
    for limit in _LIMITS:
        fitting = [point for point in points if _at_most(point) <= limit]
        if fitting:
            best = min(fitting, key=_bytes)
            plain = min(
                (p for p in fitting if not p.score.macs_per_token), key=_bytes, default=None
            )
            found.append(Recommendation(limit, best, None if plain is best else plain))
    return tuple(found)


def _at_most(point: SweepPoint) -> float:
    return point.score.ppl_increase_pct + _ERRORS * point.score.ppl_increase_se_pct


def _bytes(point: SweepPoint) -> int:
    return point.score.bytes
