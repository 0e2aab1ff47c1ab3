"""Writers of plain tables, row by row: ``.npy``, ``.safetensors`` and HDF5.

Each file holds one table [vocab, layers, hidden] that `tolpack.sources` reads again. Rows come in
any order of their ids and are written at their offsets, so that none stays in memory. The
safetensors library writes only tensors that are in memory whole. Its format is a length, JSON and
the values (https://github.com/huggingface/safetensors), and is written here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError

Metadata = dict[str, str | int | float | list[int]]
Shape = tuple[int, int, int]

# The numpy dtype of the file's values, by `dtype`; the bits of bfloat16, which numpy does not have.
STORED_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
# Name of the one tensor or dataset.
TABLE_NAME = "table"
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Bytes reserved for the JSON and its length: the longest list of dropped layers takes 24 KB.
_SAFETENSORS_HEAD_BYTES = 32 << 10


class TableWriter(Protocol):
    """A table that is being written into an empty file.

    ``dtypes``: those that the format has.
    """

    dtypes: tuple[str, ...]

    def __init__(self, file: BinaryIO, shape: Shape, dtype: str) -> None: ...

    def write_rows(self, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Write the rows of ascending `ids`, (n, layers, hidden) of a dtype of `STORED_DTYPES`."""
        ...

    def finish(self, metadata: Metadata) -> None:
        """Write the metadata, after all rows."""
        ...

    def close(self) -> None:
        """End the writing, finished or not; the file stays open."""
        ...


class _FlatTableWriter:
    """Rows one after the other from the byte `start` on."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start

    def write_rows(self, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """See `TableWriter.write_rows`; neighbours are written together."""
        cuts = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
        for begin, end in zip(cuts, cuts[1:]):
            self._file.seek(self._start + int(ids[begin]) * rows[0].nbytes)
            self._file.write(rows[begin:end].data)

    def close(self) -> None:
        """See `TableWriter.close`."""


class NpyTableWriter(_FlatTableWriter):
    """A ``.npy``, which cannot hold metadata."""

    dtypes: tuple[str, ...] = ("float32", "float16")

    def __init__(self, file: BinaryIO, shape: Shape, dtype: str) -> None:
        head = {"descr": STORED_DTYPES[dtype], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        super().__init__(file, file.tell())

    def finish(self, metadata: Metadata) -> None:
        """See `TableWriter.finish`."""


class SafetensorsTableWriter(_FlatTableWriter):
    """A ``.safetensors``; its metadata are strings, so numbers and lists are written as JSON."""

    dtypes: tuple[str, ...] = tuple(STORED_DTYPES)

    def __init__(self, file: BinaryIO, shape: Shape, dtype: str) -> None:
        super().__init__(file, _SAFETENSORS_HEAD_BYTES)
        size = math.prod(shape) * np.dtype(STORED_DTYPES[dtype]).itemsize
        self._table = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": shape,
            "data_offsets": [0, size],
        }

    def finish(self, metadata: Metadata) -> None:
        """See `TableWriter.finish`."""
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
        head = json.dumps({"__metadata__": texts, TABLE_NAME: self._table}).encode()
        self._file.seek(0)
        self._file.write((_SAFETENSORS_HEAD_BYTES - 8).to_bytes(8, "little"))
        self._file.write(head.ljust(_SAFETENSORS_HEAD_BYTES - 8))


class Hdf5TableWriter:
    """An HDF5 file with one row per chunk; its metadata are attributes of the file."""

    dtypes: tuple[str, ...] = ("float32", "float16")

    def __init__(self, file: BinaryIO, shape: Shape, dtype: str) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ConfigError("writing .h5 needs h5py: pip install 'tolpack[build]'") from error
        # Opened by name: an error of a file object stays pending while h5py goes on calling it, and
        # a file object that is closed too early crashes the process. The file is locked already.
        with _disk_errors():
            self._file = h5py.File(file.name, "w", locking=False)
        try:
            with _disk_errors():
                self._table = self._file.create_dataset(
                    TABLE_NAME, shape, STORED_DTYPES[dtype], chunks=(1, *shape[1:])
                )
        except BaseException:
            self.close()
            raise

    def write_rows(self, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """See `TableWriter.write_rows`."""
        with _disk_errors():
            for token_id, row in zip(ids.tolist(), rows):
                self._table.id.write_direct_chunk((token_id, 0, 0), row)

    def finish(self, metadata: Metadata) -> None:
        """See `TableWriter.finish`."""
        with _disk_errors():
            for name, value in metadata.items():
                self._file.attrs[name] = np.array(value, int) if isinstance(value, list) else value
            self._file.close()

    def close(self) -> None:
        """See `TableWriter.close`."""
        with contextlib.suppress(OSError), _disk_errors():
            self._file.close()  # does nothing the second time


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise `OSError` for failed writes, some of which HDF5 raises as `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"errno = (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, str(error)) from error


_WRITERS: dict[str, type[TableWriter]] = {
    ".npy": NpyTableWriter,
    ".safetensors": SafetensorsTableWriter,
    ".h5": Hdf5TableWriter,
    ".hdf5": Hdf5TableWriter,
}


def table_writer(path: str | Path) -> type[TableWriter]:
    """Return the writer for the suffix of `path`, or raise `ConfigError`."""
    suffix = Path(path).suffix
    if suffix not in _WRITERS:
        raise ConfigError(
            f"{path} is no name of a table: expected one that ends in {', '.join(_WRITERS)}"
            + (" (tolpack build makes packs)" if suffix == ".tolpack" else "")
        )
    return _WRITERS[suffix]


def check_dtype(path: str | Path, dtype: str) -> None:
    """Raise `ConfigError` if the format of `path` does not have `dtype`."""
    if dtype not in STORED_DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(STORED_DTYPES)}")
    if dtype not in table_writer(path).dtypes:
        raise ConfigError(
            f"{Path(path).suffix} has no {dtype}: use .safetensors, or float32, which is exact"
        )
