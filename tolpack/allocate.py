"""Which layer gets which rank: one slope of predicted loss per byte for all layers.

Each layer offers a curve, rank → (bytes, predicted loss). On the lower convex hull of that curve
every step has a slope, loss saved per byte spent; taking all steps of all layers whose slope is
at least ``λ`` minimises the summed loss at the bytes it takes (Shoham & Gersho 1988). So one
number, ``λ``, allocates everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerCurve:
    """What a layer offers: ascending ``ranks`` int64 (n,), their ``bytes`` and ``loss`` (n,)."""

    ranks: NDArray[np.int64]
    bytes: Doubles
    loss: Doubles


@dataclass(frozen=True, slots=True)
class _Step:
    slope: float
    layer: int
    rank: int
    bytes: float


def allocate_to_size(curves: Sequence[LayerCurve], budget_bytes: float) -> tuple[int, ...]:
    """Return each layer's rank such that the summed bytes stay within `budget_bytes`.

    Raises
    ------
    ConfigError
        Even the smallest ranks do not fit.
    """
    used = sum(float(curve.bytes[0]) for curve in curves)
    if used > budget_bytes:
        raise ConfigError(
            f"--size leaves {budget_bytes:.0f} bytes for records and bases, but the smallest ranks "
            f"take {used:.0f}: ask for more, or drop layers"
        )
    ranks = [int(curve.ranks[0]) for curve in curves]
    closed: set[int] = set()
    for step in _steps(curves):
        # A step that does not fit ends its layer; flatter ones of other layers may still fit.
        if step.layer in closed or used + step.bytes > budget_bytes:
            closed.add(step.layer)
            continue
        used += step.bytes
        ranks[step.layer] = step.rank
    return tuple(ranks)


def allocate_to_loss(curves: Sequence[LayerCurve], rounding_loss: float) -> tuple[int, ...]:
    """Return the smallest ranks whose summed truncation loss is at most `rounding_loss`."""
    ranks = [int(curve.ranks[0]) for curve in curves]
    loss = {(n, int(r)): float(v) for n, c in enumerate(curves) for r, v in zip(c.ranks, c.loss)}
    left = sum(loss[n, rank] for n, rank in enumerate(ranks))
    for step in _steps(curves):
        if left <= rounding_loss:
            break
        left += loss[step.layer, step.rank] - loss[step.layer, ranks[step.layer]]
        ranks[step.layer] = step.rank
    return tuple(ranks)


def _steps(curves: Sequence[LayerCurve]) -> list[_Step]:
    """All hull steps, steepest first; within a layer they come in the order of their ranks."""
    steps = []
    for layer, curve in enumerate(curves):
        hull = _lower_hull(curve.bytes, curve.loss)
        for a, b in zip(hull, hull[1:]):
            extra = float(curve.bytes[b] - curve.bytes[a])
            slope = float(curve.loss[a] - curve.loss[b]) / extra
            steps.append(_Step(slope, layer, int(curve.ranks[b]), extra))
    return sorted(steps, key=lambda step: (-step.slope, step.layer, step.rank))


def _lower_hull(x: Doubles, y: Doubles) -> list[int]:
    """Indices of the lower convex hull of points with ascending `x`."""
    hull: list[int] = []
    for n in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[n] - x[a]) < (y[n] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(n)
    return hull
