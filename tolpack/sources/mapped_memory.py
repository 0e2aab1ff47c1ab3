"""A limit on the resident memory of mapped files.

Pages of a map that were touched count as resident memory for as long as the map lives, so a pass
over a large checkpoint would end with all of it resident. `MappedMemory` counts the bytes that are
touched, and has the map dropped before they grow many; the next read maps the file again.

One touched page can map 2 MB: the kernel maps pages around it, and all of a huge page that the page
cache happens to hold. So scattered rows are read in pieces. A map is dropped for them only if the
kernel says that so much is resident.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.fork_safety import ForkSafe

# Touched pages that may be resident at once, for each set of mapped files.
MAPPED_BYTES = 128 << 20
# What one touched page may map at most: a huge page.
_MOST_AROUND_BYTES = 2 << 20
_STATM = "/proc/self/statm"


class MappedMemory(ForkSafe):
    """Count touched bytes of mapped files, and call `release` once `limit` of them are resident.

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
        self._before = _resident_bytes()
        super().__init__()

    def touch(self, touched_bytes: int) -> None:
        """Count bytes that were read through a map; too many rather than too few."""
        with self._lock:
            self._touched += touched_bytes
            if self._touched <= self._limit:
                return
            resident = _resident_bytes()
            if resident is not None and self._before is not None:
                self._before = min(self._before, resident)
                self._touched = resident - self._before
                if self._touched <= self._limit:
                    return
            self._release()
            self._touched = 0
            self._before = _resident_bytes()

    def pieces(self, ids: NDArray[np.int64], row_bytes: int) -> Iterator[slice]:
        """Cut rows `ids` of a mapped tensor into slices that are to be read one after another.

        Each is counted once the next is asked for, so that no more than about `limit` is resident
        even if every row brings a huge page along. Load the tensor again for each.
        """
        if not len(ids):
            yield slice(0, 0)
            return
        span = (int(ids.max()) - int(ids.min()) + 1) * row_bytes
        around = row_bytes + _MOST_AROUND_BYTES
        count = len(ids) if span <= self._limit else max(1, self._limit // (2 * around))
        for start in range(0, len(ids), count):
            rows = min(count, len(ids) - start)
            yield slice(start, start + rows)
            self.touch(min(span, rows * around))


def _resident_bytes() -> int | None:
    """Resident bytes of mapped files of this process; ``None`` where the system does not say."""
    try:
        with open(_STATM) as file:
            return int(file.read().split()[2]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
