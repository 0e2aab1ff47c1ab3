"""A file of object storage, read at offsets: large reads as several requests at the same time."""

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import BinaryIO

import numpy as np

from tolpack.errors import CheckpointError, FormatError
from tolpack.runtime.array_types import Bytes
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.runtime.pool import Pool
from tolpack.storage.remote_object import RemoteObject
from tolpack.storage.remote_path import RemotePath

# Requests that a read is cut into, bytes of the least and the largest of them, and how many there
# are at the same time, each with its bytes in memory. One connection to object storage carries some
# 80 MB/s, and an answer begins after some 20 ms, so that eight requests of 4 MiB carry 450 MB/s.
_REQUESTS = 8
_LEAST_BYTES, _PIECE_BYTES = 256 << 10, 4 << 20
_THREADS = 16
# What a stream asks for at least, for headers and small files.
_BUFFER_BYTES = 256 << 10
_pool = Pool(_THREADS, "input")


class RemoteInput(ForkSafe):
    """A file that `RemotePath` names, as it was when it was opened; for several threads.

    What is read is of one version of the object: see `RemoteObject`.

    Parameters
    ----------
    path : RemotePath
        The file.

    Raises
    ------
    FileAccessError
        It does not exist, or cannot be reached.
    """

    def __init__(self, path: RemotePath) -> None:
        self.path = path
        self._object = RemoteObject(path.folder, path.name)
        self.size = self._object.look().size
        super().__init__()

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        super().reset_after_fork()
        self._announced: dict[tuple[int, int], Future[memoryview]] = {}

    def read_into(self, offset: int, out: Bytes, *, wait: bool = True) -> bool:
        """Fill `out`, uint8 and C-contiguous, with the bytes from `offset` on.

        With ``wait=False`` it does nothing and returns ``False``: every read waits for the network.

        Raises
        ------
        FileAccessError
            The bytes are not there, or cannot be read.
        CheckpointError
            The file is another one by now.
        """
        if not wait:
            return False
        target = out.reshape(-1)
        with self._lock:
            announced = self._announced.pop((offset, len(target)), None)
        if announced is not None or len(target) <= _LEAST_BYTES:
            self._fill(offset, target, announced)
        else:
            size = min(max(_LEAST_BYTES, -(-len(target) // _REQUESTS)), _PIECE_BYTES)
            starts = range(0, len(target), size)
            _pool.map(lambda at: self._fill(offset + at, target[at : at + size]), starts)
        return True

    def advise(self, offset: int, length: int) -> None:
        """Begin to read bytes that `read_into` is asked for next, at the same place and length."""
        if 0 < length <= _PIECE_BYTES:
            (answer,) = self._object.begin([(offset, offset + length)])
            with self._lock:
                self._announced[offset, length] = answer

    def _fill(self, offset: int, out: Bytes, announced: Future[memoryview] | None = None) -> None:
        if not len(out):
            return
        read = self._object.read
        try:
            data = announced.result() if announced else read(offset, offset + len(out))
        except FormatError as error:
            raise CheckpointError(
                f"{self.path} was changed while it was read: build again, from files that stay as "
                "they are"
            ) from error
        out[:] = np.frombuffer(data, np.uint8)


class _RawStream(io.RawIOBase):
    """The bytes of a file one after the other."""

    def __init__(self, file: RemoteInput) -> None:
        self._file, self._place = file, 0
        super().__init__()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._file.size - self._place))
        self._file.read_into(self._place, np.frombuffer(buffer, np.uint8)[:count])
        self._place += count
        return count


def open_remote_stream(path: RemotePath) -> BinaryIO:
    """Open a file as a stream of bytes; errors as of `RemoteInput`."""
    return io.BufferedReader(_RawStream(RemoteInput(path)), _BUFFER_BYTES)
