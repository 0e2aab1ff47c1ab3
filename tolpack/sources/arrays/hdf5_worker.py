"""The HDF5 library in a process of its own; see `tolpack.sources.arrays.hdf5`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from tolpack.runtime.worker_process import Answer, Handler, serve

# Groups and datasets that are looked at; a table has one.
_MAX_OBJECTS = 1000
# Slots of the cache of chunks, a prime.
_CACHE_SLOTS = 100_003


class TableHandlers:
    """An open file, and a method for each request about it."""

    def __init__(self) -> None:
        self._dataset: Any = None
        self._band_bytes = 0

    def open(self, values: dict[str, Any], body: bytes) -> Answer:
        """Open a file that holds one dataset, with its values inside."""
        self._dataset = None
        dataset = _only_dataset(h5py.File(values["path"], "r"))
        self._band_bytes = _band_bytes(dataset)
        if self._band_bytes > values["cache_bytes"]:
            self._band_bytes = 0
        elif self._band_bytes:  # rows that lie in the same chunks are decompressed once
            room = {"rdcc_nbytes": self._band_bytes, "rdcc_nslots": _CACHE_SLOTS}
            name = dataset.name
            dataset.file.close()
            dataset = h5py.File(values["path"], "r", **room)[name]
        self._dataset = dataset
        return {}, b""

    def describe(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer the dataset's shape and dtype, and the bytes of a value and of a row's chunks."""
        dataset = self._dataset
        answer = {
            "shape": list(map(int, dataset.shape)),
            "dtype": str(dataset.dtype),
            "item_bytes": int(dataset.dtype.itemsize),
            "band_bytes": self._band_bytes,
        }
        return answer, b""

    def take(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer columns ``start … stop-1`` of the flattened rows, float32; int64 ids increase."""
        dataset, start, stop = self._dataset, values["start"], values["stop"]
        ids = np.frombuffer(body, "<i8")
        if dataset.ndim == 3:
            found = dataset[ids, start // dataset.shape[2]]
        else:
            found = dataset[ids, start:stop]
        return {}, np.asarray(found, dtype="<f4").tobytes()

    def stored(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer rows ``start … stop-1`` as they are stored."""
        rows = self._dataset[values["start"] : values["stop"]]
        return {}, np.ascontiguousarray(rows).tobytes()

    def table(self) -> dict[str, Handler]:
        """Return the handlers by name."""
        return {"open": self.open, "describe": self.describe, "take": self.take,
                "stored": self.stored}  # fmt: skip


def _only_dataset(file: Any) -> Any:
    """Return the file's one dataset, whose values are in the file."""
    found = list(_datasets(file))
    if len(found) != 1:
        names = ", ".join(str(dataset.name) for dataset in found[:8]) or "none"
        raise ValueError(f"it must hold one dataset, found {names}")
    if found[0].is_virtual or found[0].external:
        raise ValueError(
            "the values of its dataset are in other files: copy them into one, for example "
            "with h5repack"
        )
    return found[0]


def _band_bytes(dataset: Any) -> int:
    """Bytes of all the chunks that a row lies in, decompressed; 0 if they are not chunks."""
    if dataset.chunks is None:
        return 0
    others = (
        -(-size // chunk) * chunk for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:])
    )
    return int(dataset.chunks[0] * math.prod(others) * dataset.dtype.itemsize)


def _datasets(file: Any) -> Iterator[Any]:
    """Yield every dataset once; soft links within the file are skipped.

    Raises
    ------
    ValueError
        There is a link into another file, or there are a great many objects.
    """
    groups, seen = [file], 0
    addresses = {h5py.h5o.get_info(file.id).addr}
    while groups:
        group = groups.pop()
        for name in group:
            seen += 1
            if seen > _MAX_OBJECTS:
                raise ValueError(f"it must hold one dataset, found over {_MAX_OBJECTS} objects")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ValueError(f"{name!r} is a link into another file: copy the table itself")
            if not isinstance(link, h5py.HardLink):
                continue
            node = group[name]
            address = h5py.h5o.get_info(node.id).addr
            if address in addresses:
                continue
            addresses.add(address)
            if isinstance(node, h5py.Dataset):
                yield node
            elif isinstance(node, h5py.Group):
                groups.append(node)


if __name__ == "__main__":
    serve(TableHandlers().table())
