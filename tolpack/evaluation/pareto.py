"""The Pareto front of packs: those that no other one is both smaller and nearer than."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each pair of costs whether no other pair is as small in both and smaller in one.

    Examples
    --------
    >>> on_front([(1.0, 3.0), (2.0, 3.0), (2.0, 1.0)])
    [True, False, True]
    """

    def dominated(own: tuple[float, float]) -> bool:
        return any(c != own and c[0] <= own[0] and c[1] <= own[1] for c in costs)

    return [not dominated(own) for own in costs]
