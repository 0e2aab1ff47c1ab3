"""Allocation by one slope: hulls, sizes, losses, against brute force."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolpack.compress.fixed.rank_allocation import (
    RankOption,
    allocate_to_loss,
    allocate_to_size,
    lower_hull,
)
from tolpack.errors import ConfigError

points = st.lists(
    st.builds(
        lambda size, loss: RankOption(size, 0, float(size), loss / 2, float(loss)),
        st.integers(1, 60),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=8,
)


@given(points)
def test_hull_is_convex_and_below_everything(offered):
    """Hull points rise in bytes, fall in loss, have falling slopes, and no point lies below."""
    hull = lower_hull(offered)
    slopes = [(a.loss - b.loss) / (b.bytes - a.bytes) for a, b in zip(hull, hull[1:])]
    assert all(slope > 0 for slope in slopes)
    assert all(a > b for a, b in zip(slopes, slopes[1:]))
    assert hull[0].bytes == min(point.bytes for point in offered)
    assert hull[-1].loss == min(point.loss for point in offered)
    for point in offered:
        for a, b in zip(hull, hull[1:]):
            if a.bytes <= point.bytes <= b.bytes:
                share = (point.bytes - a.bytes) / (b.bytes - a.bytes)
                assert point.loss >= a.loss + share * (b.loss - a.loss) - 1e-9


@given(st.lists(points, min_size=1, max_size=3), st.integers(1, 180))
def test_allocation_fits_and_is_optimal_among_hull_slopes(layers, budget):
    """The result fits, and nothing of at most its bytes has less loss when it met the budget."""

    def fits(chosen):
        return sum(point.bytes for point in chosen) <= budget

    cheapest = sum(min(point.bytes for point in layer) for layer in layers)
    if cheapest > budget:
        with pytest.raises(ConfigError, match="--size is too small"):
            allocate_to_size(layers, fits)
        return
    chosen = allocate_to_size(layers, fits)
    assert fits(chosen)
    assert all(point in layer for point, layer in zip(chosen, layers))
    # Every allocation along one slope is optimal for its bytes; the greedy one is at least as
    # good as the dearest of those that fit.
    for slope in {s for layer in layers for s in _slopes(layer)} | {float("inf")}:
        along = [_at_slope(layer, slope) for layer in layers]
        if fits(along):
            assert sum(p.loss for p in chosen) <= sum(p.loss for p in along) + 1e-9


@given(st.lists(points, min_size=1, max_size=3), st.floats(0, 90))
def test_loss_target_is_met_if_it_can_be(layers, target):
    """Summed truncation ends at or below the target, or at the least that the hulls offer."""
    chosen = allocate_to_loss(layers, target)
    least = sum(lower_hull(layer)[-1].truncation for layer in layers)
    found = sum(point.truncation for point in chosen)
    assert found <= max(target, least) + 1e-9


@given(st.lists(points, min_size=1, max_size=3))
def test_slope_allocations_are_optimal_for_their_bytes(layers):
    """What a loss target gives is beaten by no combination of points of at most its bytes."""
    full = sum(point.truncation for layer in layers for point in layer)
    for target in (0, full / 4, full / 2, full):
        chosen = allocate_to_loss(layers, target)
        slopes = [s for layer, point in zip(layers, chosen) for s in _slopes_from(layer, point)]
        size, loss = sum(p.bytes for p in chosen), sum(p.loss for p in chosen)
        last = max(slopes, default=0)
        for other in itertools.product(*layers):
            extra = sum(p.bytes for p in other) - size
            # A dearer choice may save at most the next slope per byte.
            assert sum(p.loss for p in other) >= loss - last * max(extra, 0) - 1e-6 or extra > 0


def test_step_that_does_not_fit_leaves_room_for_others():
    """A large step that does not fit does not keep a smaller one of another layer from fitting."""
    big = [RankOption(1, 0, 10, 50, 100), RankOption(2, 0, 100, 0, 0)]
    small = [RankOption(1, 0, 10, 5, 10), RankOption(2, 0, 15, 4, 8)]
    chosen = allocate_to_size([big, small], lambda c: sum(p.bytes for p in c) <= 30)
    assert [point.rank for point in chosen] == [1, 2]


def test_nothing_to_gain_stays_at_the_cheapest():
    """A target that is met from the start takes no step."""
    layer = [RankOption(8, 0, 10, 1, 2), RankOption(16, 0, 20, 0, 1)]
    assert [p.rank for p in allocate_to_loss([layer, layer], 5)] == [8, 8]


def _slopes(layer):
    hull = lower_hull(layer)
    return [(a.loss - b.loss) / (b.bytes - a.bytes) for a, b in zip(hull, hull[1:])]


def _slopes_from(layer, point):
    hull = lower_hull(layer)
    return _slopes(layer)[hull.index(point) :]


def _at_slope(layer, slope):
    """The dearest hull point that is reached by steps of at least `slope`."""
    hull, chosen = lower_hull(layer), lower_hull(layer)[0]
    for step, point in zip(_slopes(layer), hull[1:]):
        if step >= slope:
            chosen = point
    return chosen
