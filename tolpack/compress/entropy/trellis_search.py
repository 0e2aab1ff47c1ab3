"""Trellis-coded quantization: the codes of least error among those that the trellis of
`tolpack.codecs.ans.trellis` allows (Marcellin and Fischer 1990).

A path through the trellis chooses a code for every value. The Viterbi algorithm keeps the best path
to each of the 8 states. With a step of 0.6 of plain rounding's, errors are smaller at the same
entropy: a path that must take odd codes here takes even ones there.

Rates are left out of the search. Deciding by rate and distortion shrinks rows towards zero, and
such errors, alike in all tokens, cost a model far more than their square says (docs/lab-notes.md).

The functions of this module are the definition, over all rows at once. `trellis_loops` has the same
with numba, where it is installed and ``TOLPACK_KERNELS`` is not ``off``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from tolpack.codecs import kernels
from tolpack.codecs.ans.trellis import STATES, run_length
from tolpack.codecs.kernels import Kernel
from tolpack.compress.entropy.trellis_tables import EVEN, FAR, ODD, SUBSET_COUNT, SUBSETS
from tolpack.runtime.array_types import Floats, Ints

# The step of codes along a trellis whose errors are as large as those of plain rounding to 1, where
# codes are large. Where many are zero it is larger; ranks chosen by 0.75 gave larger packs.
STEP_RATIO = 0.6
_ZERO = np.float32(0)


@dataclass(frozen=True, slots=True)
class _Loops:
    """Compiled `define_run` and `define_block`."""

    run: Kernel
    block: Kernel


def search_codes(values: Floats, limits: Floats, lanes: int) -> Floats:
    """Return codes of least squared error, float32 (count, rows).

    Parameters
    ----------
    values : ndarray
        float32 (count, rows), in steps: a row's values are a column.
    limits : ndarray
        float32 (count,): the largest code of each value, at least 3.
    lanes : int
        Values are cut into so many runs, each of which begins in state 0.
    """
    out = np.empty_like(values)
    tops, length = subset_tops(limits), run_length(len(values), lanes)
    loops = _loops()
    for start in range(0, len(values), length):
        run = slice(start, start + length)
        if loops is None:
            define_run(values[run], tops[run], out[run])
        else:
            loops.run(values[run], tops[run], out[run])
    return out


def subset_tops(limits: Floats) -> Floats:
    """Return the largest magnitude of each subset up to `limits`, float32 (count, 4)."""
    subset = np.arange(SUBSET_COUNT, dtype=np.float32)
    whole = np.asarray(limits, np.float32)[:, None]
    return np.asarray(whole - (whole - subset) % SUBSET_COUNT, np.float32)


def nearest(magnitudes: Floats, subset: int, top: np.float32) -> Floats:
    """Return the members of a subset that are nearest to `magnitudes`, up to `top`."""
    offset = np.float32(subset)
    whole = np.ceil((magnitudes - offset) * np.float32(0.25) - np.float32(0.5))
    found: Floats = np.minimum(np.float32(4) * np.maximum(whole, _ZERO) + offset, top)
    if subset == SUBSET_COUNT - 1:
        found[magnitudes <= np.float32(1.5)] = 0
    return found


def define_run(values: Floats, tops: Floats, out: Floats) -> None:
    """Search the codes of a run, from state 0 on.

    Parameters
    ----------
    values : ndarray
        float32 (count, rows), in steps.
    tops : ndarray
        float32 (count, 4), of `subset_tops`.
    out : ndarray
        float32 (count, rows), which receives the codes.
    """
    count, rows = values.shape
    magnitudes = np.minimum(np.abs(values), tops[:, -1:] + np.float32(4))
    odd = np.empty((count, STATES, rows), np.bool_)
    cost = np.full((STATES, rows), FAR, np.float32)
    cost[0] = 0
    even_subsets, odd_subsets = SUBSETS[EVEN & 1, 0], SUBSETS[ODD & 1, 1]
    for i, one in enumerate(magnitudes):
        codes = _nearest_of_all(one, tops[i])
        square = np.square(one - codes)
        by_even, by_odd = cost[EVEN] + square[even_subsets], cost[ODD] + square[odd_subsets]
        np.less(by_odd, by_even, out=odd[i])
        cost = np.minimum(by_even, by_odd)
    state, each = cost.argmin(axis=0), np.arange(rows)
    for i in reversed(range(count)):
        parity = odd[i, state, each]
        state = np.where(parity, ODD[state], EVEN[state])
        codes = _nearest_of_all(magnitudes[i], tops[i])
        np.copysign(codes[SUBSETS[state & 1, parity.astype(np.int64)], each], values[i], out=out[i])


def _nearest_of_all(magnitudes: Floats, tops: Floats) -> Floats:
    return np.stack([nearest(magnitudes, subset, top) for subset, top in enumerate(tops)])


def define_block(
    left: Floats, factor: Floats, tops: Floats, states: Ints, codes: Floats, errors: Floats
) -> None:
    """Search the codes of a block of values that compensate for one another's errors: each path
    has its own errors, and its own values to come (GPTQ, as in `DirectQuantizer`).

    Parameters
    ----------
    left : ndarray
        float32 (count, rows), in steps.
    factor : ndarray
        float32 (count, count): the block's part of ``U``.
    tops : ndarray
        float32 (4,), of `subset_tops`.
    states : ndarray
        int64 (rows,): the states to begin in; receives those at the end.
    codes, errors : ndarray
        float32 (count, rows), which receive the codes, and the errors over ``U_ii``, in steps.
    """
    count, rows = left.shape
    residual = np.repeat(left[:, None], STATES, axis=1)
    cost = np.full((STATES, rows), FAR, np.float32)
    cost[states, np.arange(rows)] = 0
    steps = []
    for i in range(count):
        odd, cost, found, error = _reach(residual[i], np.float32(1) / factor[i, i], tops, cost)
        steps.append((odd, found, error))
        residual = np.where(odd, residual[:, ODD], residual[:, EVEN])
        residual[i + 1 :] -= factor[i, i + 1 :, None, None] * error
    state, each = cost.argmin(axis=0), np.arange(rows)
    states[:] = state
    for i, (odd, found, error) in reversed(list(enumerate(steps))):
        codes[i], errors[i] = found[state, each], error[state, each]
        state = np.where(odd[state, each], ODD[state], EVEN[state])


def _reach(residual: Floats, inverse: np.float32, tops: Floats, cost: Floats) -> tuple[Floats, ...]:
    """Choose the better of the two ways that lead to each state: whether it is the odd one, its
    cost, its code, and its error.
    """
    ways = []
    for parity, before in enumerate((EVEN, ODD)):
        values = residual[before]
        found = np.empty_like(values)
        for state, subset in enumerate(SUBSETS[before & 1, parity]):
            found[state] = nearest(np.abs(values[state]), subset, tops[subset])
        np.copysign(found, values, out=found)
        error = (values - found) * inverse
        ways.append((cost[before] + error * error, found, error))
    odd = ways[1][0] < ways[0][0]
    return (odd, *(np.where(odd, *way) for way in zip(*reversed(ways))))


def search_block(
    left: Floats, factor: Floats, tops: Floats, states: Ints, codes: Floats, errors: Floats
) -> None:
    """As `define_block`, compiled where that can be."""
    loops = _loops()
    search = define_block if loops is None else loops.block
    search(left, factor, tops, states, codes, errors)


@cache
def _loops() -> _Loops | None:
    if kernels.load() is None:
        return None
    from numba import types

    from tolpack.compress.entropy import trellis_loops

    values = types.Array(types.float32, 2, "C")
    given = types.Array(types.float32, 2, "A", readonly=True)
    tops = types.Array(types.float32, 1, "A", readonly=True)
    states = types.Array(types.int64, 1, "C")
    return _Loops(
        Kernel(trellis_loops.search_run, [types.void(given, given, values)]),
        Kernel(
            trellis_loops.search_block,
            [types.void(values, given, tops, states, values, values)],
        ),
    )
