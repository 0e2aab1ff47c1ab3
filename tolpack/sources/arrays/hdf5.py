"""A table in an HDF5 file: its only dataset.

The HDF5 library is written in C and was not made for damaged files, and a file may make it read
other files. So it runs in a process of its own (`tolpack.runtime.worker_process`,
`tolpack.sources.arrays.hdf5_worker`), which refuses datasets whose values are in other files.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.runtime.files import regular_size
from tolpack.runtime.worker_process import Answer, Request, WorkerError, WorkerProcess
from tolpack.sources.arrays.stored_array import StoredArray

_WORKER = "tolpack.sources.arrays.hdf5_worker"
# Rows that are asked for at once, as float32.
_PIECE_BYTES = 4 << 20
_MEMORY_BYTES = 64 << 20
# Computing time, and more for each value: deflate gives some 200 MB/s, and h5py takes 20 µs and
# more to select a row.
_SECONDS = 0.8
_VALUE_SECONDS, _ROW_SECONDS = 1e-6, 1e-3
# For each byte of the chunks that a row lies in, which a request may have to decompress.
_BAND_SECONDS = 4e-8
# Values' bytes for each byte of the file, at most: deflate reaches 1,032.
_MAX_RATIO = 1032


def open_hdf5(path: Path) -> StoredArray:
    """Open the file's only dataset; see `tolpack.sources.arrays.open_array`."""
    if importlib.util.find_spec("h5py") is None:
        raise ConfigError("reading .h5 needs h5py: pip install 'tolpack[build]'")
    return _Table(path).array()


class _Table:
    """A dataset that another process reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            size = regular_size(path)
        except OSError as error:
            raise CheckpointError(f"cannot read table {path}: {error.strerror or error}") from error
        # A chunk is held whole, stored and decoded, and so are all those of a row, if they fit.
        self._memory_bytes = _MEMORY_BYTES + 4 * size
        self._band_seconds = 0.0
        cache = _MEMORY_BYTES // 2 + 2 * size
        where = {"path": str(path.absolute()), "cache_bytes": cache}
        opening = self._request("open", where, b"", 0)
        self._worker = WorkerProcess(_WORKER, opening)
        values, _ = self._ask(self._request("describe", {}, b"", 0))
        self._shape: tuple[int, ...] = tuple(values["shape"])
        self._dtype: str = values["dtype"]
        self._band_seconds = int(values["band_bytes"]) * _BAND_SECONDS
        declared = math.prod(self._shape) * int(values["item_bytes"])
        if declared > _MAX_RATIO * size:
            raise CheckpointError(
                f"{path} declares a dataset of {declared:,} bytes and has {size:,}, which no "
                "compression explains: most of it was never written"
            )

    def array(self) -> StoredArray:
        """Return the dataset as an array on disk."""
        return StoredArray(self._path, self.take, self.stored, self._shape, self._dtype)

    def take(self, ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        """See `StoredArray`."""
        width = stop - start
        distinct, inverse = np.unique(ids, return_inverse=True)  # h5py wants increasing indices
        rows = np.empty((len(distinct), width), np.float32)
        step = max(1, _PIECE_BYTES // (4 * max(1, width)))
        for first in range(0, len(distinct), step):
            piece = distinct[first : first + step]
            seconds = len(piece) * (_ROW_SECONDS + width * _VALUE_SECONDS)
            request = self._request(
                "take", {"start": start, "stop": stop}, piece.astype("<i8").tobytes(), seconds
            )
            found = np.frombuffer(self._ask(request)[1], "<f4")
            if found.size != len(piece) * width:
                raise self._refusal(f"it gives {found.size} values for {len(piece)} rows")
            rows[first : first + step] = found.reshape(len(piece), width)
        return rows[inverse]

    def stored(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See `StoredArray`."""
        row_values = math.prod(self._shape[1:])
        step = max(1, _PIECE_BYTES // (4 * max(1, row_values)))
        pieces = []
        for first in range(start, stop, step):
            values = {"start": first, "stop": min(first + step, stop)}
            seconds = step * (_ROW_SECONDS + row_values * _VALUE_SECONDS)
            body = self._ask(self._request("stored", values, b"", seconds))[1]
            pieces.append(np.frombuffer(body, np.uint8))
        return np.concatenate(pieces)

    def _ask(self, request: Request) -> Answer:
        try:
            return self._worker.ask(request)
        except WorkerError as error:
            raise self._refusal(str(error)) from error

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(f"cannot read table {self._path}: {reason}")

    def _request(
        self, name: str, values: dict[str, Any], body: bytes, more_seconds: float
    ) -> Request:
        seconds = _SECONDS + self._band_seconds + more_seconds
        return Request(name, values, body, seconds, self._memory_bytes)
