"""Histograms of sampled codes, from which classes and models of frame ``ans`` are fitted.

Codes stand in arrays of one chunk each, and every chunk and stored value has a histogram. Its bins
are exact for small codes and grow with larger ones, so that the histograms of all values stay
small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Doubles, Ints

LEAST, CODES = -(1 << 15), 1 << 16
# Codes up to this have a bin each; above, an octave has two.
_EXACT = 8
# Values whose histograms are made, or used, together.
_TOGETHER = 512


def _bin_starts() -> Ints:
    above, width = [_EXACT + 1], 2
    while above[-1] + width < -LEAST:
        above.append(above[-1] + width)
        above.append(min(above[-1] + width, -LEAST))
        width *= 2
    above = [start for start in above if start < -LEAST]
    below = [1 - stop for stop in (*above[1:], -LEAST + 1)][::-1]
    return np.array([*below, *range(-_EXACT, _EXACT + 1), *above], np.int64)


BIN_STARTS = _bin_starts()
BINS = len(BIN_STARTS)
BIN_WIDTHS = np.diff(np.append(BIN_STARTS, -LEAST))
_BIN_OF = np.repeat(np.arange(BINS), BIN_WIDTHS)


@dataclass(frozen=True, slots=True)
class SampledCodes:
    """Codes of sampled rows, one array for each chunk.

    ``levels``: int16 (n, V), what is coded; ``rows``: how many rows of the table a row of each
    array stands for; ``sets``: with a trellis, uint8 (n, V), 0 or 1: the set that a level is of.
    """

    levels: Sequence[NDArray[np.int16]]
    rows: Sequence[float]
    sets: Sequence[NDArray[np.uint8]] | None = None

    @property
    def values(self) -> int:
        """Stored values of a row."""
        return int(self.levels[0].shape[1])

    @property
    def set_count(self) -> int:
        """Models of a class: two with a trellis."""
        return 1 if self.sets is None else 2

    def histograms(self) -> Histograms:
        """Return the histograms of every chunk and value."""
        counts = []
        for chunk, levels in enumerate(self.levels):
            found = np.zeros((self.values, self.set_count * BINS), np.min_scalar_type(len(levels)))
            for start in range(0, self.values, _TOGETHER):
                part = levels[:, start : start + _TOGETHER]
                places = _BIN_OF[part.astype(np.int64) - LEAST]
                if self.sets is not None:
                    places += BINS * self.sets[chunk][:, start : start + _TOGETHER].astype(np.int64)
                places += found.shape[1] * np.arange(part.shape[1])
                size = part.shape[1] * found.shape[1]
                own = np.bincount(places.ravel(), minlength=size)
                found[start : start + _TOGETHER] = own.reshape(part.shape[1], -1)
            counts.append(found)
        return Histograms(counts, np.asarray(self.rows, np.float64))

    def class_counts(self, chunk: int, classes: NDArray[np.uint8], count: int) -> Doubles:
        """Return how often the codes of a chunk occur in each class: float64 (`count` × sets,
        65,536), counted once for every row of the table; `classes` (V,).
        """
        found = np.zeros((count, self.set_count, CODES))
        levels, sets = self.levels[chunk], None if self.sets is None else self.sets[chunk]
        for number in np.unique(classes).tolist():
            at = classes == number
            own = levels[:, at].astype(np.int64) - LEAST
            if sets is not None:
                own += CODES * sets[:, at].astype(np.int64)
            size = self.set_count * CODES
            found[number] = np.bincount(own.ravel(), minlength=size).reshape(-1, CODES)
        return found.reshape(-1, CODES) * self.rows[chunk]


@dataclass(frozen=True, slots=True)
class Histograms:
    """Histograms by chunk and value: of each chunk unsigned integers (V, sets × bins).

    ``rows``, float64 (chunks,): the rows of the table that one count stands for.
    """

    counts: Sequence[NDArray[np.unsignedinteger]]
    rows: Doubles

    def mean_sizes(self) -> Doubles:
        """Return the mean of ``|code|``, about: float64 (chunks, V)."""
        middle = np.abs(BIN_STARTS + (BIN_WIDTHS - 1) / 2)
        sets = self.counts[0].shape[1] // BINS
        found = [one @ np.tile(middle, sets) / one[0].sum() for one in self.counts]
        return np.stack(found)

    def by_class(self, classes: Ints, count: int) -> Doubles:
        """Return the histograms of `count` classes: float64 (`count`, sets × bins).

        `classes`, int64 (chunks, V): the class of each value.
        """
        found = np.zeros((count, self.counts[0].shape[1]))
        for one, own, rows in zip(self.counts, classes, self.rows):
            for span in _spans(len(own)):
                member = own[span] == np.arange(count)[:, None]
                found += rows * (member.astype(np.float64) @ one[span].astype(np.float64))
        return found

    def bits(self, chunk: int, costs: Doubles) -> Doubles:
        """Return what the codes of a chunk's values cost by models of given `costs`, float64
        (models, sets × bins), in bits of a code of each bin: float64 (V, models).

        Costs are rounded to 1/256 bit, so that sums are exact in any order.
        """
        whole = np.rint(256 * costs.T)
        one = self.counts[chunk]
        found = [one[span].astype(np.float64) @ whole for span in _spans(len(one))]
        bits: Doubles = np.concatenate(found) * (self.rows[chunk] / 256)
        return bits


def _spans(count: int) -> Iterator[slice]:
    bounds = [*range(0, count, _TOGETHER), count]
    return (slice(start, stop) for start, stop in pairwise(bounds))
