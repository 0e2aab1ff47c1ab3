"""The rows that were read last, for fields that are columns of the same rows.

A build asks for one field after the other of the same ids. Where a field is a few columns of long
rows, reading them alone would take a call of the system for each row, and reading whole rows once
for each field would multiply the bytes read by the number of fields.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Bytes
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.sources.tensors.tensor_rows import JoinedRows

# Bytes of whole rows that are read at once for a few of their columns.
_PIECE_BYTES = 16 << 20
# Bytes of rows that are kept: what a build counts for mapped files, which tensors of files are not.
_KEPT_BYTES = 128 << 20


class LastRows(ForkSafe):
    """Whole rows of `rows` for the lists of ids that were asked for last; for several threads.

    Parameters
    ----------
    rows : JoinedRows
        Where they are read from.
    limit : int
        Bytes of rows that are kept.
    """

    def __init__(self, rows: JoinedRows, limit: int = _KEPT_BYTES) -> None:
        self.rows = rows
        self._limit = limit
        super().__init__()

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        super().reset_after_fork()
        self._kept: OrderedDict[bytes, Bytes] = OrderedDict()

    def take(self, ids: NDArray[np.int64]) -> Bytes:
        """Return rows `ids` as `JoinedRows.take` does; nobody may write to them."""
        key = ids.tobytes()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        rows = self.rows.take(ids)
        with self._lock:
            self._kept[key] = rows
            while sum(kept.nbytes for kept in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)  # it may be the new one
        return rows

    def columns(self, ids: NDArray[np.int64], first: int, size: int) -> Bytes:
        """Return bytes ``first … first + size - 1`` of rows `ids`: uint8 (n, size), a new array."""
        if size == self.rows.row_bytes:
            return self.rows.take(ids)
        out = np.empty((len(ids), size), np.uint8)
        count = max(1, _PIECE_BYTES // self.rows.row_bytes)
        for start in range(0, len(ids), count):
            rows = self.take(ids[start : start + count])
            out[start : start + count] = rows[:, first : first + size]
        return out
