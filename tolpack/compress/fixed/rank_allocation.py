"""Which layer gets how many bytes: one slope of predicted loss per byte for all layers.

Each layer offers points: a rank and a number of leading coefficients at 8 bits, with the bytes
and the loss that they cost. On the lower convex hull of a layer's points every step has a slope,
loss saved per byte spent; taking all steps of all layers whose slope is at least ``λ`` minimises
the summed loss at the bytes it takes (Shoham & Gersho 1988). So one number, ``λ``, allocates
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tolpack.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RankOption:
    """One way to store a layer.

    ``rank`` coefficients, the first ``leading`` of them at 8 bits. ``loss`` decides between points
    (only its differences matter); ``truncation`` predicts what the cut components add in all. Both
    in nats per token.
    """

    rank: int
    leading: int
    bytes: float
    truncation: float
    loss: float


Allocation = tuple[RankOption, ...]


def allocate_to_size(
    layers: Sequence[Sequence[RankOption]], fits: Callable[[Allocation], bool]
) -> Allocation:
    """Take steps, steepest first, for as long as the file still `fits`.

    A step that does not fit ends its layer; flatter ones of other layers may still fit.

    Raises
    ------
    ConfigError
        Even the cheapest points do not fit.
    """
    hulls = [lower_hull(points) for points in layers]
    chosen = [hull[0] for hull in hulls]
    if not fits(tuple(chosen)):
        raise ConfigError("--size is too small even for the smallest ranks: ask for more bytes")
    closed: set[int] = set()
    for layer, point in _steps(hulls):
        if layer in closed:
            continue
        before, chosen[layer] = chosen[layer], point
        if not fits(tuple(chosen)):
            chosen[layer] = before
            closed.add(layer)
    return tuple(chosen)


def allocate_to_loss(layers: Sequence[Sequence[RankOption]], truncation: float) -> Allocation:
    """Take steps, steepest first, until the summed truncation is at most `truncation`."""
    hulls = [lower_hull(points) for points in layers]
    chosen = [hull[0] for hull in hulls]
    for layer, point in _steps(hulls):
        if sum(p.truncation for p in chosen) <= truncation:
            break
        chosen[layer] = point
    return tuple(chosen)


def lower_hull(points: Sequence[RankOption]) -> list[RankOption]:
    """Points on the lower convex hull of (bytes, loss), cheapest first, loss falling."""
    hull: list[RankOption] = []
    for point in sorted(points, key=lambda p: (p.bytes, p.loss)):
        if hull and point.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _steps(hulls: Sequence[Sequence[RankOption]]) -> list[tuple[int, RankOption]]:
    """All hull steps as (layer, point reached), steepest first; in order within a layer."""
    steps = [
        (-_slope(a, b), layer, number, b)
        for layer, hull in enumerate(hulls)
        for number, (a, b) in enumerate(zip(hull, hull[1:]))
    ]
    return [(layer, point) for _, layer, _, point in sorted(steps, key=lambda step: step[:3])]


def _slope(a: RankOption, b: RankOption) -> float:
    """Loss saved per byte from `a` to the dearer `b`."""
    return (a.loss - b.loss) / (b.bytes - a.bytes)
