"""The pack to ship for a given limit on perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tolpack.evaluation.experiment_runner import SweepResult

# Percent of perplexity.
_LIMITS = (0.1, 0.25, 0.5, 1.0, 3.0)
# An increase counts with so many of its standard errors on top.
_STANDARD_ERRORS = 2
_LEAST_WINDOWS = 10


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The smallest pack that costs at most ``limit_pct`` of perplexity.

    The limit holds two standard errors above what was measured. ``without_basis``: the smallest of
    those packs that have no basis to multiply by, if it is another one.
    """

    limit_pct: float
    smallest: SweepResult
    without_basis: SweepResult | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        other = None if self.without_basis is None else self.without_basis.options.arguments
        return {"limit_pct": self.limit_pct, "options": self.smallest.options.arguments,
                "bytes": self.smallest.score.bytes, "options_without_basis": other}  # fmt: skip


def recommend(results: Sequence[SweepResult], windows: int) -> tuple[Recommendation, ...]:
    """Recommend a pack for each limit from 0.1 to 3 %; a limit that no pack meets is left out.

    Nothing is recommended from fewer than ten windows, whose standard errors mean little.
    """
    if windows < _LEAST_WINDOWS:
        return ()
    recommended: list[Recommendation] = []
    for limit in _LIMITS:
        within = [one for one in results if _upper_bound_pct(one) <= limit]
        if within:
            smallest = min(within, key=_bytes)
            basis_free = [one for one in within if not one.score.macs_per_token]
            other = min(basis_free, key=_bytes, default=None)
            recommended.append(
                Recommendation(limit, smallest, None if other is smallest else other)
            )
    return tuple(recommended)


def _upper_bound_pct(result: SweepResult) -> float:
    score = result.score
    return score.ppl_increase_pct + _STANDARD_ERRORS * score.ppl_increase_se_pct


def _bytes(result: SweepResult) -> int:
    return result.score.bytes
