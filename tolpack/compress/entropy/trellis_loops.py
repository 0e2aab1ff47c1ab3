"""The loops of `tolpack.compress.entropy.trellis_search` that numba compiles, and their tables;
imported only where numba is installed.

They give the same bits as that module's own functions: sums of float32 in the same order. Rows are
searched side by side in tiles, so that the inner loops, over the rows of a tile, are vectorized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from tolpack.codecs.ans.trellis import STATES
from tolpack.compress.entropy.trellis_tables import EVEN, FAR, ODD, SUBSET_COUNT, SUBSETS

Array = NDArray[Any]

_TILE, _FEEDBACK_TILE = 32, 32
_QUARTER, _HALF = np.float32(0.25), np.float32(0.5)
_ONE, _TWO, _THREE, _FOUR = np.float32(1), np.float32(2), np.float32(3), np.float32(4)
_ZERO, _FIRST_OF_THREE = np.float32(0), np.float32(1.5)


@register_jitable
def nearest(magnitude: Any, subset: Any, top: Any) -> Any:
    """Return the member of a subset that is nearest to `magnitude`, up to `top`."""
    offset = np.float32(subset)
    whole = max(np.ceil((magnitude - offset) * _QUARTER - _HALF), _ZERO)
    found = min(_FOUR * whole + offset, top)
    if subset == SUBSET_COUNT - 1 and magnitude <= _FIRST_OF_THREE:
        return _ZERO
    return found


def search_run(values: Array, tops: Array, out: Array) -> None:
    """Search one run; see `tolpack.compress.entropy.trellis_search.define_run`."""
    count, rows = values.shape
    tile = np.zeros((count, _TILE), np.float32)
    parities = np.empty((count, _TILE), np.uint8)
    cost = np.empty((STATES, _TILE), np.float32)
    for start in range(0, rows, _TILE):
        width = min(_TILE, rows - start)
        for i in range(count):
            for t in range(width):
                tile[i, t] = values[i, start + t]
        cost[:] = FAR
        cost[0] = _ZERO
        for i in range(count):
            _advance(tile[i], tops[i], cost, parities[i])
        for t in range(width):
            state = 0
            for m in range(1, STATES):
                if cost[m, t] < cost[state, t]:
                    state = m
            for i in range(count - 1, -1, -1):
                parity = (parities[i, t] >> state) & 1
                state = ODD[state] if parity else EVEN[state]
                subset = SUBSETS[state & 1, parity]
                value, top = tile[i, t], tops[i]
                magnitude = min(abs(value), top[SUBSET_COUNT - 1] + _FOUR)
                out[i, start + t] = np.copysign(nearest(magnitude, subset, top[subset]), value)


@register_jitable
def _advance(values: Array, tops: Array, cost: Array, parities: Array) -> None:
    """Extend the paths of a tile by one value."""
    top0, top1, top2, top3 = tops[0], tops[1], tops[2], tops[3]
    c0, c1, c2, c3 = cost[0], cost[1], cost[2], cost[3]
    c4, c5, c6, c7 = cost[4], cost[5], cost[6], cost[7]
    for t in range(_TILE):
        a = min(abs(values[t]), top3 + _FOUR)
        d0 = a - nearest(a, 0, top0)
        d1 = a - nearest(a, 1, top1)
        d2 = a - nearest(a, 2, top2)
        d3 = a - nearest(a, 3, top3)
        d0, d1, d2, d3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
        e0, o0 = c0[t] + d0, c4[t] + d2
        e1, o1 = c2[t] + d0, c6[t] + d2
        e2, o2 = c4[t] + d0, c0[t] + d2
        e3, o3 = c6[t] + d0, c2[t] + d2
        e4, o4 = c5[t] + d3, c3[t] + d1
        e5, o5 = c1[t] + d3, c7[t] + d1
        e6, o6 = c3[t] + d3, c5[t] + d1
        e7, o7 = c7[t] + d3, c1[t] + d1
        parities[t] = (
            (o0 < e0) | (o1 < e1) << 1 | (o2 < e2) << 2 | (o3 < e3) << 3
            | (o4 < e4) << 4 | (o5 < e5) << 5 | (o6 < e6) << 6 | (o7 < e7) << 7
        )  # fmt: skip
        c0[t], c1[t], c2[t], c3[t] = min(e0, o0), min(e1, o1), min(e2, o2), min(e3, o3)
        c4[t], c5[t], c6[t], c7[t] = min(e4, o4), min(e5, o5), min(e6, o6), min(e7, o7)


def search_block(
    left: Array, factor: Array, tops: Array, states: Array, codes: Array, errors: Array
) -> None:
    """Search one block; see `tolpack.compress.entropy.trellis_search.define_block`."""
    count, rows = left.shape
    residual = np.empty((2, count, STATES, _FEEDBACK_TILE), np.float32)
    cost = np.empty((2, STATES, _FEEDBACK_TILE), np.float32)
    found = np.empty((2, count, STATES, _FEEDBACK_TILE), np.float32)
    odd = np.empty((count, STATES, _FEEDBACK_TILE), np.float32)
    for start in range(0, rows, _FEEDBACK_TILE):
        width = min(_FEEDBACK_TILE, rows - start)
        cost[0] = FAR
        residual[0] = _ZERO
        for t in range(width):
            cost[0, states[start + t], t] = _ZERO
            for i in range(count):
                residual[0, i, :, t] = left[i, start + t]
        for i in range(count):
            now, then = i & 1, (i + 1) & 1
            for m in range(STATES):
                _reach(
                    m, residual[now, i], factor[i, i], tops, cost[now], cost[then, m],
                    found[0, i, m], found[1, i, m], odd[i, m],
                )  # fmt: skip
                for j in range(i + 1, count):
                    _feed_back(
                        m, residual[now, j], factor[i, j], found[1, i, m], odd[i, m],
                        residual[then, j, m],
                    )  # fmt: skip
        last = cost[count & 1]
        for t in range(width):
            state = 0
            for m in range(1, STATES):
                if last[m, t] < last[state, t]:
                    state = m
            states[start + t] = state
            for i in range(count - 1, -1, -1):
                codes[i, start + t] = found[0, i, state, t]
                errors[i, start + t] = found[1, i, state, t]
                state = (ODD if odd[i, state, t] > _HALF else EVEN)[state]


@register_jitable
def _reach(
    state: int, residual: Array, scale: Any, tops: Array, cost: Array, new_cost: Array,
    codes: Array, errors: Array, odd: Array,
) -> None:  # fmt: skip
    """Choose the better of the two ways that lead to a state, for the rows of a tile."""
    even_from, odd_from = EVEN[state], ODD[state]
    even_values, odd_values = residual[even_from], residual[odd_from]
    even_costs, odd_costs = cost[even_from], cost[odd_from]
    even_subset, odd_subset = SUBSETS[even_from & 1, 0], SUBSETS[odd_from & 1, 1]
    even_top, odd_top = tops[even_subset], tops[odd_subset]
    if even_from & 1:
        for t in range(_FEEDBACK_TILE):
            x, y = even_values[t], odd_values[t]
            p, q = nearest(abs(x), 3, even_top), nearest(abs(y), 1, odd_top)
            p, q = np.copysign(p, x), np.copysign(q, y)
            e, f = (x - p) / scale, (y - q) / scale
            a, b = even_costs[t] + e * e, odd_costs[t] + f * f
            chosen = b < a
            new_cost[t], odd[t] = (b if chosen else a), (_ONE if chosen else _ZERO)
            codes[t], errors[t] = (q if chosen else p), (f if chosen else e)
    else:
        for t in range(_FEEDBACK_TILE):
            x, y = even_values[t], odd_values[t]
            p, q = nearest(abs(x), 0, even_top), nearest(abs(y), 2, odd_top)
            p, q = np.copysign(p, x), np.copysign(q, y)
            e, f = (x - p) / scale, (y - q) / scale
            a, b = even_costs[t] + e * e, odd_costs[t] + f * f
            chosen = b < a
            new_cost[t], odd[t] = (b if chosen else a), (_ONE if chosen else _ZERO)
            codes[t], errors[t] = (q if chosen else p), (f if chosen else e)


@register_jitable
def _feed_back(
    state: int, residual: Array, factor: Any, errors: Array, odd: Array, out: Array
) -> None:
    """Take what a value's error asks for from a value behind it, for the rows of a tile."""
    even_values, odd_values = residual[EVEN[state]], residual[ODD[state]]
    for t in range(_FEEDBACK_TILE):
        out[t] = (odd_values[t] if odd[t] > _HALF else even_values[t]) - factor * errors[t]
