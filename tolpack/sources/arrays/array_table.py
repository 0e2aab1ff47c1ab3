"""Plain tables: an array of shape ``[vocab, layers, hidden]`` or ``[vocab, layers·hidden]``.

It may be in a ``.npy``, in a ``.safetensors`` of one tensor, or in HDF5.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.arrays.hdf5 import open_hdf5
from tolpack.sources.arrays.npy import read_npy
from tolpack.sources.arrays.remote_array import open_remote_npy, open_remote_tensor
from tolpack.sources.arrays.stored_array import StoredArray
from tolpack.sources.checkpoint.safetensors_file import SafetensorsFile
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES
from tolpack.sources.identity import FileStates, rows_digest
from tolpack.sources.mapped_memory import MappedMemory
from tolpack.sources.protocol import FieldRows, check_finite
from tolpack.sources.table_limits import equal_fields
from tolpack.sources.uniform_table import UniformTable
from tolpack.storage.inputs import InputPath


class ArrayTable(UniformTable):
    """A plain table on disk.

    Parameters
    ----------
    array : StoredArray
        ``[vocab, layers, hidden]`` or ``[vocab, layers · hidden]``.
    layers : int or None
        Number of layers; required for a two-dimensional table.
    """

    def __init__(self, array: StoredArray, layers: int | None) -> None:
        if array.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"the table is {array.dtype}, expected float32, float16 or bfloat16: convert it"
            )
        rows, layers, width = _table_shape(array.shape, layers)
        super().__init__(rows, equal_fields(layers, width, array.dtype))
        self._array = array
        self._files = FileStates([array.path])
        self._digest: bytes | None = None

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        start = field * self.hidden_size

        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            values = self._array.take(ids, start, start + self.hidden_size)
            check_finite(values, ids, field)
            return values

        return rows

    @property
    def stored_bytes(self) -> int:
        """Bytes of the table as stored."""
        return self.rows * self.num_layers * self.hidden_size * DTYPE_BYTES[self.dtype]

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`."""
        if self._digest is None:
            row_bytes = self.stored_bytes // self.rows
            self._digest = rows_digest(self.rows, row_bytes, self._array.stored, done)

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self._files.check()

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: shape, dtype and every bit of the rows."""
        self.check(lambda size: None)
        return self._shape_digest() + (self._digest or b"")

    def sampled_fingerprint(self) -> bytes:
        """See `TableSource.sampled_fingerprint`."""
        return self._shape_digest() + self._files.sampled_digest()

    def _shape_digest(self) -> bytes:
        shape = (self.rows, self.num_layers, self.hidden_size)
        return hashlib.sha256(f"{shape} {self.dtype}".encode()).digest()

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        return [f"table [{self.rows}, {self.num_layers}, {self.hidden_size}] {self.dtype}"]


def open_array(path: InputPath) -> StoredArray | None:
    """Open a plain table by its suffix; return ``None`` if the file is none, such as a checkpoint.

    Raises
    ------
    CheckpointError, ConfigError
        It cannot be read.
    """
    if path.suffix not in _OPENERS or not path.is_file():
        return None
    if isinstance(path, Path):
        return _OPENERS[path.suffix](path)
    if path.suffix == ".npy":
        return open_remote_npy(path)
    if path.suffix == ".safetensors":
        return open_remote_tensor(path)
    raise ConfigError(
        f"{path} is HDF5, which is read on this machine only: download it first, or save it as .npy"
    )


def _open_npy(path: Path) -> StoredArray:
    def map_file() -> NDArray[Any]:
        try:
            return read_npy(path, "table", mapped=True)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error

    held = [map_file()]
    shape, dtype = held[0].shape, str(held[0].dtype)
    row_bytes = held[0].dtype.itemsize * math.prod(shape[1:])
    if not held[0].flags.c_contiguous:  # a row lies all over the file
        row_bytes = held[0].nbytes
    mapped = MappedMemory(held.clear)

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((len(ids), stop - start), np.float32)
        for piece in mapped.pieces(ids, row_bytes):
            array = next(iter(held), None)
            if array is None:
                held[:] = [array := map_file()]
            if array.ndim == 3:  # no reshape: it would copy a table in Fortran order
                rows[piece] = array[ids[piece], start // array.shape[2]]
            else:
                rows[piece] = array[ids[piece], start:stop]
            del array  # what is referenced cannot be released
        return rows

    def stored(start: int, stop: int) -> NDArray[np.uint8]:
        array = map_file()[start:stop]
        mapped.touch(array.nbytes)
        return np.ascontiguousarray(array).view(np.uint8)

    return StoredArray(path, take, stored, shape, dtype)


def _open_tensor(path: Path) -> StoredArray | None:
    file = SafetensorsFile(path)
    infos = file.infos()
    if len(infos) != 1:
        return None  # a checkpoint
    name, info = next(iter(infos.items()))
    mapped = MappedMemory(file.release)

    def take(ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((len(ids), stop - start), np.float32)
        row_bytes = getattr(torch, info.dtype).itemsize * math.prod(info.shape[1:])
        for piece in mapped.pieces(ids, row_bytes):
            flat = file.load(name).flatten(1)
            rows[piece] = flat[torch.from_numpy(ids[piece]), start:stop].float().numpy()
            del flat  # what is referenced cannot be released
        return rows

    def stored(start: int, stop: int) -> NDArray[np.uint8]:
        rows = file.load(name)[start:stop]
        mapped.touch(rows.nbytes)
        return rows.view(torch.uint8).numpy()

    return StoredArray(path, take, stored, info.shape, info.dtype)


_OPENERS: dict[str, Callable[[Path], StoredArray | None]] = {
    ".npy": _open_npy,
    ".safetensors": _open_tensor,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
}


def _table_shape(shape: tuple[int, ...], layers: int | None) -> tuple[int, int, int]:
    if len(shape) == 3 and layers in (None, shape[1]) and min(shape) > 0:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2 and layers is None:
        raise ConfigError(
            f"the table has shape {list(shape)}: say how many layers a row holds with --layers N"
        )
    if len(shape) == 2 and layers and min(shape) > 0 and shape[1] % layers == 0:
        return shape[0], layers, shape[1] // layers
    raise CheckpointError(
        f"the table has shape {list(shape)}, expected [vocab, layers, hidden] or "
        f"[vocab, layers·hidden] with --layers (given: {layers})"
    )
