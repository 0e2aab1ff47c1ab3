"""Digests of sources and files, and whether files are still the same.

The pack id and the key of ``--resume`` come from digests of every bit that rows depend on. A sample
would not do: two tables that differ in one bit must not get one id, or blocks of one would pass for
blocks of the other. A digest of rows is a SHA-256 over the SHA-256 of blocks, which several threads
compute. Blocks are cut by the rows' size alone, so the digest depends neither on threads nor on how
a tensor is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, FileAccessError
from tolpack.runtime.pool import processor_count
from tolpack.storage.inputs import InputPath, file_state, open_stream
from tolpack.storage.remote_path import RemotePath

_BLOCK_BYTES = 8 << 20
# At least, so that reads over a network overlap.
_LEAST_THREADS = 4
_READ_BYTES = 1 << 20
# What `FileStates.sampled_digest` reads of a file.
_SAMPLE_BYTES, _SAMPLES = 1 << 15, 64
# Read elsewhere: as many requests at the same time as there are.
_REMOTE_READ_BYTES = 32 << 20


def rows_digest(
    count: int,
    row_bytes: int,
    block: Callable[[int, int], NDArray[np.uint8]],
    done: Callable[[int], object] = lambda size: None,
) -> bytes:
    """Return 32 bytes that depend on every bit of `count` rows of `row_bytes` each.

    Parameters
    ----------
    block : callable
        ``block(start, stop)`` returns those rows, uint8 of any shape, contiguous; called from
        several threads.
    done : callable
        Called with the number of bytes read since the last call.
    """
    step = max(1, _BLOCK_BYTES // max(row_bytes, 1))

    def digest(start: int) -> tuple[bytes, int]:
        rows = block(start, min(count, start + step))
        return hashlib.sha256(rows.data).digest(), rows.nbytes

    whole = hashlib.sha256()
    with ThreadPoolExecutor(max(processor_count(), _LEAST_THREADS)) as pool:
        for part, size in pool.map(digest, range(0, count, step)):
            whole.update(part)
            done(size)
    return whole.digest()


def file_digest(path: InputPath, done: Callable[[int], object] = lambda size: None) -> bytes:
    """Return 32 bytes that depend on every byte of a file (SHA-256).

    `done` is called with the number of bytes read since the last call.

    Raises
    ------
    FileAccessError
        It cannot be read, or is not a regular file.
    """
    read_bytes = _REMOTE_READ_BYTES if isinstance(path, RemotePath) else _READ_BYTES
    digest, buffer = hashlib.sha256(), bytearray(read_bytes)
    try:
        with open_stream(path) as file:
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                digest.update(memoryview(buffer)[:count])
                done(count)
            return digest.digest()
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error


class FileStates:
    """What `file_state` says of some files, to tell later whether they are still the same."""

    def __init__(self, paths: Iterable[InputPath]) -> None:
        self._states = {path: file_state(path) for path in paths}
        self._digests: dict[InputPath, bytes] = {}

    def digest(self, path: InputPath, done: Callable[[int], object]) -> bytes:
        """Return `file_digest` of a file; a second call reads nothing."""
        if path not in self._digests:
            self._digests[path] = file_digest(path, done)
        return self._digests[path]

    def size(self, path: InputPath) -> int:
        """Return the bytes that a file had."""
        state = self._states[path]
        return 0 if state is None else int(state[0])

    def sampled_digest(self) -> bytes:
        """Return 32 bytes that depend on the files' names, their sizes, and some of their bytes:
        the first and the last ones, where formats have their headers, and a few between them. Of
        files that lie elsewhere they depend on ETag and time, as every machine sees the same.
        """
        whole = hashlib.sha256()
        for path in sorted(self._states, key=str):
            whole.update(f"{path.name!r} {self.size(path)}".encode())
            if isinstance(path, RemotePath):
                whole.update(repr(self._states[path]).encode())
            else:
                whole.update(_sampled_digest(path, self.size(path)))
        return whole.digest()

    def check(self) -> None:
        """Raise `CheckpointError` if a file was changed, replaced or removed since."""
        for path, state in self._states.items():
            if file_state(path) != state:
                raise CheckpointError(
                    f"{path} was changed while it was read: build again, from files that stay as "
                    "they are"
                )


def _sampled_digest(path: InputPath, size: int) -> bytes:
    if isinstance(path, RemotePath):  # its ETag tells more than samples, and costs less
        return hashlib.sha256(repr(path.state()).encode()).digest()
    digest, step = hashlib.sha256(), max(_SAMPLE_BYTES, size // _SAMPLES)
    try:
        with open_stream(path) as file:
            for start in (*range(0, size, step), max(0, size - _SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.digest()
