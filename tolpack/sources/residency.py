"""Keeping mapped files from filling memory.

Pages of a map that were touched count as resident memory for as long as the map lives, so a pass
over a large checkpoint would end with all of it resident. A `Residency` counts what is touched and
has the map dropped, and made anew, before that grows large.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Touched pages that may be resident at once, for each set of mapped files.
MAPPED_BYTES = 128 << 20
# The kernel maps up to this much around a page that is touched.
_FAULT_AROUND_BYTES = 1 << 16


class Residency:
    """Counts touched bytes and calls `release` each time there were `limit` of them.

    Parameters
    ----------
    release : callable
        Drops the maps; what is still referenced keeps its own. Called under a lock.
    limit : int
        Bytes.
    """

    def __init__(self, release: Callable[[], None], limit: int = MAPPED_BYTES) -> None:
        self._release = release
        self._limit = limit
        self._touched = 0
        self._lock = threading.Lock()

    def touch(self, touched_bytes: int) -> None:
        """Count bytes that were read through a map."""
        with self._lock:
            self._touched += touched_bytes
            if self._touched > self._limit:
                self._release()
                self._touched = 0

    def touch_rows(self, ids: NDArray[np.int64], row_bytes: int) -> None:
        """Count rows `ids` of a tensor: scattered ones bring their surroundings along."""
        if len(ids):
            span = (int(ids.max()) - int(ids.min()) + 1) * row_bytes
            self.touch(min(span, len(ids) * (row_bytes + _FAULT_AROUND_BYTES)))
