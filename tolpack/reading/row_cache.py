"""Records of the most frequent tokens, kept in memory up to a budget.

A pack stores its tokens in descending frequency, so the best that a cache of so many rows can hold
is known beforehand: the first slots. Nothing is ever evicted, the budget is never exceeded, and
scans of rare tokens push out nothing. A table without a token map is in the order of its ids, which
for most tokenizers is the order of frequency too, roughly.

Records are kept as they are decoded from: checked, decompressed, with 4 to 16 bits a value. Float
rows would be two to eight times as large, and fewer tokens would fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tolpack.container.chunk_view import ChunkView
from tolpack.runtime.array_types import Bytes


class RowCache:
    """See the module; safe to use from several threads.

    Parameters
    ----------
    chunks : sequence of ChunkView
        The pack's chunks.
    budget : int
        Bytes that records and the marks of those present may take.
    """

    def __init__(self, chunks: Sequence[ChunkView], budget: int) -> None:
        self._records: list[Bytes] = []
        self._present: list[NDArray[np.bool_]] = []
        left = budget
        for view in chunks:
            rows = min(view.chunk.rows, left // (view.record_bytes + 1))
            left -= rows * (view.record_bytes + 1)
            # Of np.empty, only what is written takes memory.
            self._records.append(np.empty((rows, view.record_bytes), np.uint8))
            self._present.append(np.zeros(rows, bool))
            if rows < view.chunk.rows:
                left = 0

    @property
    def rows(self) -> int:
        """Rows that fit."""
        return sum(map(len, self._present))

    @property
    def nbytes(self) -> int:
        """Bytes of the records that are present."""
        parts = zip(self._present, self._records)
        return sum(int(present.sum()) * records.shape[1] for present, records in parts)

    def has(self, chunk: int, row: int) -> bool:
        """Whether a row of a chunk is present."""
        present = self._present[chunk]
        return row < len(present) and bool(present[row])

    def found(self, chunk: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of the ascending `rows` (n,) of a chunk is present: bool (n,)."""
        present = self._present[chunk] if chunk < len(self._present) else np.zeros(0, bool)
        inside = int(np.searchsorted(rows, len(present)))
        result = np.zeros(len(rows), bool)
        result[:inside] = present[rows[:inside]]
        return result

    def records(self, chunk: int, rows: NDArray[np.int64]) -> Bytes:
        """Records of `rows` that are present: uint8 (n, record_bytes), a copy."""
        return self._records[chunk][rows]

    def put(self, chunk: int, rows: NDArray[np.int64], records: Bytes) -> None:
        """Keep records of ascending `rows`, as far as there is room for them."""
        inside = int(np.searchsorted(rows, len(self._present[chunk])))
        if inside:
            self._records[chunk][rows[:inside]] = records[:inside]
            self._present[chunk][rows[:inside]] = True  # after the record: others may look now
