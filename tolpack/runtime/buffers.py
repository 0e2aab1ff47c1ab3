"""Large arrays whose memory is used again once nobody holds them.

The system clears the pages of a new array one by one as they are touched. For rows that are decoded
at memory speed, that takes a third of the time.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tolpack.runtime.fork_safety import register_fork_reset

# Smaller ones are taken from memory that the process has, and need no clearing.
_LEAST_BYTES = 1 << 20


class Buffers:
    """Memory of at most `limit` bytes that is kept for the next arrays."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[NDArray[np.uint8]] = []
        self.reset_after_fork()
        register_fork_reset(self)

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        self._lock = threading.RLock()  # a finalizer may run within `array`

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of any content.

        Its memory comes back when this object is gone. Views of it do not keep it: hold on to the
        array itself, as a tensor made from it does.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _LEAST_BYTES:
            return np.empty(shape, dtype)
        memory = self._take(size)
        array = memory[:size].view(dtype).reshape(shape)
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array

    def _take(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            fitting = [n for n, memory in enumerate(self._free) if len(memory) >= size]
            if fitting:
                return self._free.pop(min(fitting, key=lambda n: len(self._free[n])))
        return np.empty(size, np.uint8)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(memory)
            while sum(map(len, self._free)) > self._limit:  # the oldest go
                self._free.pop(0)
