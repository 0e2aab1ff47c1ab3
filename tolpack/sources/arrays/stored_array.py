"""An array in a file, read some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.storage.inputs import InputPath


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array on disk, whose first axis is the tokens.

    ``take(ids, start, stop)``: float32 (n, stop - start), those columns of the flattened rows `ids`
    int64 (n,). ``stored(start, stop)``: those rows as they are stored, little-endian, uint8 of any
    shape, contiguous; may be called from several threads. ``dtype``: name of the stored one.
    """

    path: InputPath
    take: Callable[[NDArray[np.int64], int, int], NDArray[np.float32]]
    stored: Callable[[int, int], NDArray[np.uint8]]
    shape: tuple[int, ...]
    dtype: str
