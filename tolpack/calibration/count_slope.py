"""How sensitive the loss is to rare rows against frequent ones.

An error in a row costs its squared gradient each time the row is read. If that were the same for
all rows, a row's weight would be its count. It is nearly so for MemoryLLM. Per-layer embeddings are
normalized behind their gate, and rows that training read often are larger: their gradients are
smaller. So the mean squared gradient is fitted by a power of the count, and steps follow from it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Doubles

# Counts are taken together where their natural logarithms have one integral part. A mean of fewer
# rows is noise, and one of such means is not a line.
_LEAST_ROWS, _LEAST_MEANS = 8, 3


class CountSlope:
    """Squared gradients of rows, summed while a text is differentiated."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int64]] = []
        self._squares: list[Doubles] = []

    def add(self, row_ids: NDArray[np.int64], squares: Doubles) -> None:
        """Add the squared gradients (n,) at the rows `row_ids` (n,)."""
        ids, places = np.unique(row_ids, return_inverse=True)
        sums = np.bincount(places, squares, minlength=len(ids))
        counts = np.bincount(places, minlength=len(ids))
        self._ids.append(ids)
        self._squares.append(np.stack([sums, counts.astype(np.float64)]))

    def extend(self, other: CountSlope) -> None:
        """Add what another one was given."""
        self._ids += other._ids
        self._squares += other._squares

    def arrays(self) -> tuple[NDArray[np.int64], Doubles]:
        """Return all that was added: rows (n,), and their sums and counts (2, n)."""
        if not self._ids:
            return np.zeros(0, np.int64), np.zeros((2, 0))
        return np.concatenate(self._ids), np.concatenate(self._squares, axis=1)

    def put(self, row_ids: NDArray[np.int64], squares: Doubles) -> None:
        """Add what `arrays` has returned."""
        self._ids.append(row_ids)
        self._squares.append(squares)

    def slope(self) -> float:
        """Return ``s`` where the mean squared gradient of a row goes as ``count ** s``.

        A line through logarithms of means over rows of similar counts, weighted by their rows; 0
        where there are too few.
        """
        if not self._ids:
            return 0.0
        _, places = np.unique(np.concatenate(self._ids), return_inverse=True)
        sums, counts = (np.bincount(places, of) for of in np.concatenate(self._squares, axis=1))
        groups = np.floor(np.log(counts)).astype(np.int64)
        rows = np.bincount(groups)
        kept = np.flatnonzero((rows >= _LEAST_ROWS) & (np.bincount(groups, sums) > 0))
        if len(kept) < _LEAST_MEANS:
            return 0.0
        logs = np.bincount(groups, np.log(counts))[kept] / rows[kept]
        means = np.bincount(groups, sums)[kept] / np.bincount(groups, counts)[kept]
        return float(np.polyfit(logs, np.log(means), 1, w=np.sqrt(rows[kept]))[0])
