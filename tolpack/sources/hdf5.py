"""A table in an HDF5 file: its only dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.protocol import Array


def open_hdf5(path: Path) -> Array:
    """Open the file's only dataset; see `tolpack.sources.arrays.open_array`."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("reading .h5 needs h5py: pip install 'tolpack[build]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CheckpointError(f"cannot read table {path}: {error}") from error
    found: list[Any] = []
    file.visititems(lambda _, node: found.append(node) if isinstance(node, h5py.Dataset) else None)
    if len(found) != 1:
        names = ", ".join(dataset.name for dataset in found) or "none"
        raise CheckpointError(f"{path} must hold one dataset, found {names}")
    dataset = found[0]

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        distinct, inverse = np.unique(ids, return_inverse=True)  # h5py wants increasing indices
        if dataset.ndim == 3:
            layer = start // dataset.shape[2]
            return np.asarray(dataset[distinct, layer], dtype=np.float32)[inverse]
        return np.asarray(dataset[distinct, start:stop], dtype=np.float32)[inverse]

    def stored(start: int, stop: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(dataset[start:stop]).view(np.uint8)

    return Array(path, take, stored, tuple(dataset.shape), str(dataset.dtype))
