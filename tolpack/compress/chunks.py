"""Chunks: runs of tokens of similar frequency, the frequent ones first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.model_losses import CalibratedModel
from tolpack.calibration.token_order import TokenOrder
from tolpack.runtime.array_types import Doubles

# Tokens that make up this share of the text stay raw: no decompression for most tokens.
HOT_SHARE = 0.9
# A token's own step goes with the count to the power of minus half of this (docs/lab-notes.md),
# where the model is not run. MemoryLLM's `count_slope` of about -0.08 gives the same.
STEP_EXPONENT = 0.65
# Counts are raised by this share of their mean before steps follow from them. Tokens that the
# counts hardly have occur in other texts, and with steps of their own cost most of the loss there
# (docs/lab-notes.md).
_RAISED_BY = 1 / 8
# A row's errors weigh by its count times the squared gradient. Counts of one text overstate how
# much, so this share of the exponent is used.
_EXPONENT_SHARE = 0.7
_EXPONENT_RANGE = 0.1, 0.8
# A slope nearer to zero may be noise of a short text: the exponent stays as it was chosen.
_NO_SLOPE = 0.25
# What a step that is not a token's own costs, in shares of its bytes, for each unit of the square
# of the distance between their logarithms.
_STEP_COST = 0.3

_FIRST_CHUNK_ROWS = 1024
_CHUNK_ROWS = 16384
# The header names every chunk, so the chunks of large tables grow instead of becoming more.
_MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A run of ``rows`` slots from ``first_slot`` on; hot ones stay raw."""

    first_slot: int
    rows: int
    hot: bool


def doubling_chunks(order: TokenOrder) -> list[ChunkSpan]:
    """Cut slots into chunks of similar frequency: 1,024 rows, then doubling up to 16,384, or more
    where the table has over a million.
    """
    rows, longest = order.rows, _longest_chunk(order.rows)
    bounds, start = [], 0
    while start < rows:
        size = min(max(start, _FIRST_CHUNK_ROWS), longest)
        bounds.append((start, min(size, rows - start)))
        start += size
    if order.counts is None or not order.counts.sum():
        return [ChunkSpan(start, size, True) for start, size in bounds]
    covered = np.concatenate([[0], np.cumsum(order.counts)]) / order.counts.sum()
    return [ChunkSpan(start, size, bool(covered[start] < HOT_SHARE)) for start, size in bounds]


def spread_slots(spans: Sequence[ChunkSpan], count: int) -> NDArray[np.int64]:
    """Return about `count` evenly spread slots of neighbouring `spans`, int64 (n,)."""
    rows = sum(span.rows for span in spans)
    step = max(1, rows // count)
    return spans[0].first_slot + step * np.arange(min(count, -(-rows // step)))


def _longest_chunk(rows: int) -> int:
    """Rows of a chunk at most: whole multiples of 16,384."""
    return _CHUNK_ROWS * max(1, -(-rows // (_CHUNK_ROWS * _MAX_CHUNKS)))


def step_exponent(model: CalibratedModel | None) -> float:
    """Return what stands for `STEP_EXPONENT` in a table whose model was run."""
    if model is None or abs(model.count_slope) < _NO_SLOPE:
        return STEP_EXPONENT
    return float(np.clip(_EXPONENT_SHARE * (1 + model.count_slope), *_EXPONENT_RANGE))


def raised_counts(counts: NDArray[np.int64]) -> Doubles:
    """Return the counts that steps follow from, float64 (rows,)."""
    return np.asarray(counts + (1.0 + _RAISED_BY * float(counts.mean())), np.float64)


def chunks_by_step(
    order: TokenOrder,
    min_rows: int,
    row_bytes: float,
    chunk_bytes: float,
    exponent: float = STEP_EXPONENT,
) -> list[ChunkSpan]:
    """Cut slots into chunks whose tokens share one step, where that costs least.

    Cuts may fall where `raised_counts` have halved. Tokens that share a step lose by the square of
    its distance from their own, in natural logarithms: `_STEP_COST` of their bytes. What a chunk
    takes by itself (an encoding in the header, an index, padding) is compared with that.

    Parameters
    ----------
    order : TokenOrder
        Counts by slot.
    min_rows : int
        Rows of a chunk at least, but for the last one; at most as of `doubling_chunks`.
    row_bytes : float
        What a row will take, about.
    chunk_bytes : float
        What a chunk takes beside its rows.
    exponent : float
        See `step_exponent`.
    """
    if order.counts is None:
        return _cut([0, order.rows], _longest_chunk(order.rows))
    counts = raised_counts(order.counts)
    edges = _octaves(counts, min_rows)
    own = -exponent / 2 * np.log(counts)
    sums = np.add.reduceat(own, edges[:-1]).cumsum()
    squares = np.add.reduceat(own**2, edges[:-1]).cumsum()
    rows, sums, squares = edges, np.append(0, sums), np.append(0, squares)
    best, before = np.zeros(len(edges)), np.zeros(len(edges), np.int64)
    for stop in range(1, len(edges)):
        joined = rows[stop] - rows[:stop]
        spread = squares[stop] - squares[:stop] - (sums[stop] - sums[:stop]) ** 2 / joined
        through = best[:stop] + chunk_bytes + _STEP_COST * row_bytes * spread
        before[stop] = through.argmin()
        best[stop] = through[before[stop]]
    cuts = [len(edges) - 1]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return _cut(edges[cuts[::-1]].tolist(), _longest_chunk(order.rows))


def _cut(bounds: list[int], longest: int) -> list[ChunkSpan]:
    """Return chunks of at most `longest` rows between the `bounds`."""
    return [
        ChunkSpan(first, min(longest, stop - first), hot=False)
        for start, stop in pairwise(bounds)
        for first in range(start, stop, longest)
    ]


def _octaves(counts: Doubles, min_rows: int) -> NDArray[np.int64]:
    """Return where counts have halved, int64, from 0 to the rows; `min_rows` apart at least."""
    octaves = np.floor(np.log2(counts))
    edges = [0]
    for stop in np.flatnonzero(np.diff(octaves) != 0) + 1:
        if stop - edges[-1] >= min_rows:
            edges.append(int(stop))
    return np.array([*edges, len(counts)])
