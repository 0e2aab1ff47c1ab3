"""The pack to ship for a given limit of its divergence from the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tolpack.evaluation.experiment_runner import SweepResult
from tolpack.model.plausibility import LEAST_WINDOWS

# Nats of mean KL divergence. Rounding to 4 bits in groups of 64 costs 0.001 to 0.002.
_LIMITS = (0.0003, 0.001, 0.003, 0.01, 0.03)
# A divergence counts with so many of its standard errors on top.
_STANDARD_ERRORS = 2


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The smallest pack whose mean KL divergence from the checkpoint is at most ``limit_nats``.

    The limit holds two standard errors above what was measured, on the worst of several texts.
    ``without_basis``: the smallest of those packs that have no basis to multiply by, if it is
    another one.
    """

    limit_nats: float
    smallest: SweepResult
    without_basis: SweepResult | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        other = None if self.without_basis is None else self.without_basis.options.arguments
        return {"limit_nats": self.limit_nats, "options": self.smallest.options.arguments,
                "bytes": self.smallest.score.bytes,
                "read_bytes_per_token": self.smallest.score.read_bytes_per_token,
                "options_without_basis": other}  # fmt: skip


def recommend(results: Sequence[SweepResult], windows: int) -> tuple[Recommendation, ...]:
    """Recommend a pack for each limit of `_LIMITS`; one that no pack meets is left out.

    Nothing is recommended from fewer than ten windows, whose standard errors mean little.
    """
    if windows < LEAST_WINDOWS:
        return ()
    recommended: list[Recommendation] = []
    for limit in _LIMITS:
        within = [one for one in results if _upper_bound_nats(one) <= limit]
        if within:
            smallest = min(within, key=_bytes)
            basis_free = [one for one in within if not one.score.macs_per_token]
            other = min(basis_free, key=_bytes, default=None)
            recommended.append(
                Recommendation(limit, smallest, None if other is smallest else other)
            )
    return tuple(recommended)


def _upper_bound_nats(result: SweepResult) -> float:
    """Return the mean divergence and two standard errors, on the worst text."""
    scores = result.score.by_text or (result.score,)
    return max(one.kl_mean_nats + _STANDARD_ERRORS * (one.kl_mean_se_nats or 0.0) for one in scores)


def _bytes(result: SweepResult) -> int:
    return result.score.bytes
