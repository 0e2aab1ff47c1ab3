"""Arrays that a build needs again later: in memory up to a limit, beyond it in a temporary file.

Bases of all layers, loss metrics and the like grow with layers × hidden². A `Scratch` keeps them
within ``--max-memory``: arrays that do not fit are written to an unnamed file beside the output,
and read back when they are asked for.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import FileAccessError


class SpilledArray:
    """An array put into a `Scratch`; `load` gives it back, `replace` stores another one of the
    same shape and dtype in its place. Without a scratch it stays in memory, as it does once
    unpickled.
    """

    def __init__(self, scratch: Scratch | None, array: NDArray[Any]) -> None:
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self._scratch = scratch
        self._array: NDArray[Any] | None = None
        self._offset = 0
        if scratch is None or scratch.holds(self.nbytes):
            self._array = array
        else:
            self._offset = scratch.write(array, None)

    def load(self) -> NDArray[Any]:
        """Return the array; not to be changed."""
        if self._array is not None or self._scratch is None:
            return np.asarray(self._array)
        array = np.empty(self.shape, self.dtype)
        self._scratch.read_into(array, self._offset)
        return array

    def replace(self, array: NDArray[Any]) -> None:
        """Store `array` in place of what was stored."""
        if self._array is not None or self._scratch is None:
            self._array = array
        else:
            self._scratch.write(array, self._offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return in_memory, (self.load(),)


def in_memory(array: NDArray[Any]) -> SpilledArray:
    """Return an array that stays in memory, as one that may be spilled."""
    return SpilledArray(None, array)


class Scratch:
    """See the module; use as a context manager.

    Parameters
    ----------
    folder : Path
        Where the temporary file goes, if one is needed.
    limit : int
        Bytes that may stay in memory; ``left`` are those that are not taken.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.left = limit
        self._file: Any = None
        self._end = 0
        self._lock = threading.Lock()  # workers read projections back

    def spill(self, array: NDArray[Any]) -> SpilledArray:
        """Put an array aside: in memory while the limit allows, else in the file."""
        return SpilledArray(self, array)

    def holds(self, size: int) -> bool:
        """Whether `size` more bytes may stay in memory; if so, they are taken from the limit."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def read_into(self, array: NDArray[Any], offset: int) -> None:
        """Fill a contiguous `array` with what was written at `offset`."""
        left = array.data.cast("B")
        with self._lock:
            self._file.seek(offset)
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise FileAccessError(f"arrays spilled to {self.folder} cannot be read back")
                left = left[count:]

    def write(self, array: NDArray[Any], offset: int | None) -> int:
        """Write an array, over what is at `offset` or at the end; returns where it is.

        Raises
        ------
        FileAccessError
            The disk is full, or the folder is not writable.
        """
        try:
            if self._file is None:
                # Closed on exit; unbuffered, so that nothing is left to be written then.
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
            with self._lock:
                if offset is None:
                    offset, self._end = self._end, self._end + array.nbytes
                self._file.seek(offset)
                left = np.ascontiguousarray(array).data.cast("B")
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise FileAccessError(
                f"cannot spill {array.nbytes:,} bytes to {self.folder}: "
                f"{error.strerror or error}; free some space, or give more --max-memory"
            ) from error
        return offset

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
