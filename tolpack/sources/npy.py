"""Reading ``.npy`` files, and nothing else that happens to carry that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError


def read_npy(path: str | Path, purpose: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read or map an array without ever unpickling.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file.
    purpose : str
        What the array is for, for the message.
    mapped : bool
        Map it read-only instead of reading it.

    Raises
    ------
    ConfigError
        It is missing, damaged, or no plain array.
    """
    try:
        if mapped:
            return np.lib.format.open_memmap(str(path), mode="r")
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ConfigError(f"cannot read {purpose} {path}: {error}") from error


def read_counts(path: str | Path, vocab_size: int) -> NDArray[np.int64]:
    """Read token counts, ``--frequencies``: int64 (vocab_size,) from a ``.npy`` of integers.

    Raises
    ------
    ConfigError
        It cannot be read, or has another shape, or holds negative counts or fractions.
    """
    counts = read_npy(path, "--frequencies")
    if counts.dtype.kind not in "iu":
        raise ConfigError(f"--frequencies {path} must hold integer counts")
    if counts.shape != (vocab_size,):
        raise ConfigError(
            f"--frequencies {path} has shape {list(counts.shape)}, expected [{vocab_size}]: one "
            "count for each token of this model"
        )
    if counts.size and (int(counts.min()) < 0 or int(counts.max()) >= 2**62):
        raise ConfigError(f"--frequencies {path} holds counts outside 0 … 2^62")
    return counts.astype(np.int64)
