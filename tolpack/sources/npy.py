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
