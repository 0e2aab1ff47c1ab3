"""Rows of a tensor in a file, by positioned reads: neighbouring rows in one read.

Nothing is mapped. A map of a file that is truncated meanwhile ends in SIGBUS, and its touched pages
count as resident memory.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.runtime.array_types import Bytes
from tolpack.runtime.files import open_regular

# What one read may bring.
_PIECE_BYTES = 4 << 20


class RowFile:
    """Rows of equal length that lie one after another.

    Parameters
    ----------
    path : Path
        The file.
    offset_bytes : int
        Where row 0 begins.
    rows : int
        Number of rows.
    row_bytes : int
        Bytes of a row.
    """

    def __init__(self, path: Path, offset_bytes: int, rows: int, row_bytes: int) -> None:
        self.path = path
        self.rows = rows
        self.row_bytes = row_bytes
        self._offset_bytes = offset_bytes

    def take(self, ids: NDArray[np.int64], start: int, stop: int) -> Bytes:
        """Read bytes `start` to `stop` of rows `ids`, int64 (n,): uint8 (n, stop - start).

        It may be called from several threads.

        Raises
        ------
        CheckpointError
            The file cannot be read, or is shorter than it was.
        """
        out = np.empty((len(ids), stop - start), np.uint8)
        try:
            with os.fdopen(open_regular(self.path), "rb", buffering=0) as file:
                for first, last in self._runs(ids):
                    data = np.empty((last - first, self.row_bytes), np.uint8)
                    length = data.size - self.row_bytes + stop - start
                    file.seek(self._offset_bytes + int(ids[first]) * self.row_bytes + start)
                    self._fill(file, data.data.cast("B")[:length])
                    out[first:last] = data[:, : stop - start]
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{self.path} cannot be read: {reason}") from error
        return out

    def _runs(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Cut positions of `ids` into runs of neighbouring rows, none of them too long."""
        most = max(1, _PIECE_BYTES // self.row_bytes)
        breaks = np.flatnonzero(np.diff(ids) != 1) + 1
        for begin, end in itertools.pairwise([0, *breaks.tolist(), len(ids)]):
            for first in range(begin, end, most):
                yield first, min(end, first + most)

    def _fill(self, file: RawIOBase, view: memoryview) -> None:
        while len(view):
            size = file.readinto(view)
            if not size:
                raise CheckpointError(
                    f"{self.path} is shorter than when it was opened: it was cut off while it was "
                    "read; copy it again"
                )
            view = view[size:]
