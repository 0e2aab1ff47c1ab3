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

# Rows of a tile, in a run and in a block.
_TILE, _BLOCK_TILE = 32, 128
# Paths of a block's tile to a state are together, state after state, from these places on.
_AT1, _AT2, _AT3, _AT4, _AT5, _AT6, _AT7 = (state * _BLOCK_TILE for state in range(1, STATES))
_PATHS = STATES * _BLOCK_TILE
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
    residual = np.empty((2, count, _PATHS), np.float32)
    cost = np.empty((2, _PATHS), np.float32)
    found = np.empty((2, count, _PATHS), np.float32)
    odd = np.empty((count, _PATHS), np.float32)
    for start in range(0, rows, _BLOCK_TILE):
        width = min(_BLOCK_TILE, rows - start)
        _begin(left[:, start : start + width], states[start : start + width], residual[0], cost[0])
        for i in range(count):
            now, then = i & 1, (i + 1) & 1
            for m in range(STATES):
                own = slice(m * _BLOCK_TILE, (m + 1) * _BLOCK_TILE)
                _reach(
                    m, residual[now, i], _ONE / factor[i, i], tops, cost[now], cost[then, own],
                    found[0, i, own], found[1, i, own], odd[i, own],
                )  # fmt: skip
            for j in range(i + 1, count):
                _feed_back(residual[now, j], factor[i, j], found[1, i], odd[i], residual[then, j])
        _trace_back(
            cost[count & 1], odd, found, states[start : start + width],
            codes[:, start : start + width], errors[:, start : start + width],
        )  # fmt: skip


@register_jitable
def _begin(left: Array, states: Array, residual: Array, cost: Array) -> None:
    """Start the paths of a tile: in one state each, with the values as they are."""
    count, width = left.shape
    cost[:] = FAR
    residual[:] = _ZERO
    for t in range(width):
        cost[states[t] * _BLOCK_TILE + t] = _ZERO
    for i in range(count):
        for m in range(STATES):
            for t in range(width):
                residual[i, m * _BLOCK_TILE + t] = left[i, t]


@register_jitable
def _reach(
    state: int, residual: Array, inverse: Any, tops: Array, cost: Array, new_cost: Array,
    codes: Array, errors: Array, odd: Array,
) -> None:  # fmt: skip
    """Choose the better of the two ways that lead to a state, for the rows of a tile."""
    even_from, odd_from = EVEN[state], ODD[state]
    even = slice(even_from * _BLOCK_TILE, (even_from + 1) * _BLOCK_TILE)
    other = slice(odd_from * _BLOCK_TILE, (odd_from + 1) * _BLOCK_TILE)
    even_values, odd_values = residual[even], residual[other]
    even_costs, odd_costs = cost[even], cost[other]
    even_subset, odd_subset = SUBSETS[even_from & 1, 0], SUBSETS[odd_from & 1, 1]
    even_top, odd_top = tops[even_subset], tops[odd_subset]
    for t in range(_BLOCK_TILE):
        x, y = even_values[t], odd_values[t]
        p, q = nearest(abs(x), even_subset, even_top), nearest(abs(y), odd_subset, odd_top)
        p, q = np.copysign(p, x), np.copysign(q, y)
        e, f = (x - p) * inverse, (y - q) * inverse
        a, b = even_costs[t] + e * e, odd_costs[t] + f * f
        chosen = b < a
        new_cost[t], odd[t] = (b if chosen else a), (_ONE if chosen else _ZERO)
        codes[t], errors[t] = (q if chosen else p), (f if chosen else e)


@register_jitable
def _feed_back(residual: Array, factor: Any, errors: Array, odd: Array, out: Array) -> None:
    """Take what a value's errors ask for from a value behind it, for all paths of a tile."""
    for t in range(_BLOCK_TILE):
        r0, r1, r2, r3 = residual[t], residual[_AT1 + t], residual[_AT2 + t], residual[_AT3 + t]
        r4, r5 = residual[_AT4 + t], residual[_AT5 + t]
        r6, r7 = residual[_AT6 + t], residual[_AT7 + t]
        out[t] = (r4 if odd[t] > _HALF else r0) - factor * errors[t]
        out[_AT1 + t] = (r6 if odd[_AT1 + t] > _HALF else r2) - factor * errors[_AT1 + t]
        out[_AT2 + t] = (r0 if odd[_AT2 + t] > _HALF else r4) - factor * errors[_AT2 + t]
        out[_AT3 + t] = (r2 if odd[_AT3 + t] > _HALF else r6) - factor * errors[_AT3 + t]
        out[_AT4 + t] = (r3 if odd[_AT4 + t] > _HALF else r5) - factor * errors[_AT4 + t]
        out[_AT5 + t] = (r7 if odd[_AT5 + t] > _HALF else r1) - factor * errors[_AT5 + t]
        out[_AT6 + t] = (r5 if odd[_AT6 + t] > _HALF else r3) - factor * errors[_AT6 + t]
        out[_AT7 + t] = (r1 if odd[_AT7 + t] > _HALF else r7) - factor * errors[_AT7 + t]


@register_jitable
def _trace_back(
    cost: Array, odd: Array, found: Array, states: Array, codes: Array, errors: Array
) -> None:
    """Follow the best path of each row of a tile back to where it began."""
    count, width = codes.shape
    for t in range(width):
        state = 0
        for m in range(1, STATES):
            if cost[m * _BLOCK_TILE + t] < cost[state * _BLOCK_TILE + t]:
                state = m
        states[t] = state
        for i in range(count - 1, -1, -1):
            at = state * _BLOCK_TILE + t
            codes[i, t], errors[i, t] = found[0, i, at], found[1, i, at]
            state = ODD[state] if odd[i, at] > _HALF else EVEN[state]
