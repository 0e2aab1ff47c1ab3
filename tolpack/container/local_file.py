"""Files of this machine as sources of bytes: positioned reads, a memory map, or all in memory.

Positioned reads give private buffers, so what was verified is what is decoded, and a file that is
truncated meanwhile gives an error. A map copies nothing, but between the size check of each call
and the access another process can truncate the file, which ends in SIGBUS: choose it for files that
nobody rewrites in place (tolpack itself always replaces by rename).

Of several extents, those in the page cache are copied at once, by the thread that asks: a pool's
dispatch costs more than the copy. The others are announced to the system together, which reads them
at queue depth, and then fetched one by one. `tolpack.container.direct_file` reads past the page
cache; it cannot announce reads, and has threads that wait for them.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tolpack.container.byte_source import ByteSource, Extent, closed, truncated
from tolpack.errors import FileAccessError
from tolpack.runtime.files import open_regular

_HAS_PREAD = hasattr(os, "pread")
_HAS_PREADV = hasattr(os, "preadv")
_HAS_FADVISE = hasattr(os, "posix_fadvise")
_HAS_MADVISE = hasattr(mmap.mmap, "madvise")
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
# The whole file is read so many bytes at a time.
_LOAD_BYTES = 64 << 20
# Mapped pages count as memory of the process until they are let go: after about as many bytes.
_MAPPED_BYTES = 32 << 20
# A fault maps pages around the one that was touched, if the page cache has them.
_FAULT_BYTES = 64 << 10


class LocalFile(ByteSource):
    """An open file.

    Parameters
    ----------
    path : str or Path
        A regular file.

    Raises
    ------
    FileAccessError
        The file is missing, unreadable, no regular file, or cannot be used in this mode.
    """

    def __init__(self, path: str | Path) -> None:
        self._fd = open_regular(path)
        self._close_fd = weakref.finalize(self, os.close, self._fd)  # also if nobody closes it
        self.size = self.current_size()
        try:
            self._set_up()
        except (OSError, ValueError) as error:
            self._close_fd()
            raise FileAccessError(f"cannot use io={self.mode!r} for {path}: {error}") from error
        super().__init__()

    def _set_up(self) -> None:
        """Prepare the open file for this mode."""

    def current_size(self) -> int:
        """See `ByteSource`."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise FileAccessError(f"cannot look at the file: {error.strerror or error}") from error

    def _read_one(self, offset: int, length: int) -> bytes:
        try:
            data = self._pread(offset, length)
            while len(data) < length:  # a signal or a network file system cut the read short
                more = self._pread(offset + len(data), length - len(data))
                if not more:
                    raise truncated(offset, length, offset + len(data))
                data += more
        except OSError as error:
            raise FileAccessError(
                f"reading {length} bytes at {offset} failed: {error.strerror or error}"
            ) from error
        return data

    def _pread(self, offset: int, length: int) -> bytes:
        if _HAS_PREAD:
            return os.pread(self._fd, length, offset)
        with self._lock:  # Windows has no pread: seek and read must not be interleaved
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, length)

    def _will_need(self, extents: Sequence[Extent]) -> None:
        """Have the system read extents ahead into the page cache, where it can."""
        if _HAS_FADVISE:
            for offset, length in extents:
                with suppress(OSError):  # a hint
                    os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _release(self) -> None:
        self._fd = -1  # first: a fork in between must not leave a number that is given away again
        self._close_fd()


class PreadFile(LocalFile):
    """Reads through the page cache, without looking what it has."""

    mode: ClassVar[str] = "pread"
    caches_advised = True
    _nowait = 0

    def _set_up(self) -> None:
        self.expect_order(sequential=False)

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`: into private memory."""
        if self.is_closed:
            raise closed()
        if len(extents) == 1:
            self._count("single", 1, extents[0][1])
            return [self._read_one(*extents[0])]
        return self._read_into(extents, np.empty(sum(n for _, n in extents), np.uint8).data)

    def read_equal(self, offsets: Sequence[int], length: int) -> NDArray[np.uint8]:
        """See `ByteSource`."""
        if len(offsets) == 1:
            return super().read_equal(offsets, length)
        if self.is_closed:
            raise closed()
        out = np.empty((len(offsets), length), np.uint8)
        self._read_into([(offset, length) for offset in offsets], out.data)
        return out

    def advise(self, extents: Sequence[Extent]) -> None:
        """See `ByteSource`."""
        self._will_need(extents)

    def expect_order(self, *, sequential: bool) -> None:
        """See `ByteSource`: here and there, a read of some pages must not bring in neighbours."""
        if _HAS_FADVISE:
            advice = os.POSIX_FADV_SEQUENTIAL if sequential else os.POSIX_FADV_RANDOM
            with suppress(OSError):  # a hint
                os.posix_fadvise(self._fd, 0, 0, advice)

    def _read_into(self, extents: Sequence[Extent], out: memoryview) -> list[memoryview]:
        """Read several extents into `out`, one after the other."""
        buffer, found, at = out.cast("B"), [], 0
        for _, length in extents:
            found.append(buffer[at : at + length])
            at += length
        missing = [n for n, one in enumerate(extents) if not self._read_cached(one[0], found[n])]
        self.is_cold = len(missing) > len(extents) // 8
        self.advise([extents[n] for n in missing])
        for n in missing:
            offset, length = extents[n]
            found[n][:] = self._read_one(offset, length)
        self._count("warm", len(extents) - len(missing), len(buffer))
        self._count("queued", len(missing), 0)
        return found

    def _read_cached(self, offset: int, out: memoryview) -> bool:
        """Copy an extent if the page cache has all of it."""
        if not self._nowait:
            return False
        try:
            return os.preadv(self._fd, [out], offset, self._nowait) == len(out)
        except BlockingIOError:
            return False
        except OSError:  # a file system that cannot tell
            self._nowait = 0
            return False


class AutoFile(PreadFile):
    """Copies what the page cache has, and reads the rest at queue depth; one extent by one read."""

    mode: ClassVar[str] = "auto"

    def _set_up(self) -> None:
        super()._set_up()
        self._nowait = _NOWAIT if _HAS_PREADV else 0


class _ViewedFile(LocalFile):
    """A file whose bytes are at hand as one view."""

    caches_advised = True
    _way: ClassVar[str]
    _view: memoryview

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`: views."""
        view = self._view  # before the check: `close` may come between
        if self.is_closed:
            raise closed()
        self._check_size(extents)
        for offset, length in extents:
            if offset + length > self.size:
                raise truncated(offset, length, self.size)
        self._count(self._way, len(extents), 0)
        return [view[offset : offset + length] for offset, length in extents]

    def _check_size(self, extents: Sequence[Extent]) -> None:
        """Raise `FormatError` if the file has become too short to look at."""

    def _release(self) -> None:
        self._view = memoryview(b"")
        super()._release()


class MappedFile(_ViewedFile):
    """A memory map: extents are views of it."""

    mode: ClassVar[str] = "mmap"
    _way: ClassVar[str] = "mapped"

    def _set_up(self) -> None:
        self._mapped, self._mapped_limit = 0, _MAPPED_BYTES
        self._map: mmap.mmap | None = None
        self._view = memoryview(b"")
        if self.size:
            self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
            if _HAS_MADVISE:  # a fault must not read megabytes ahead
                with suppress(OSError):
                    self._map.madvise(mmap.MADV_RANDOM)
            self._view = memoryview(self._map)

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`: views of the map."""
        found, mapped = super().read_many(extents), self._map
        if mapped is not None:
            self._read_ahead(mapped, extents)
        return found

    def advise(self, extents: Sequence[Extent]) -> None:
        """See `ByteSource`."""
        self._will_need(extents)

    def limit_mapped(self, limit: int) -> None:
        """See `ByteSource`: 1 MiB at least and 32 at most."""
        self._mapped_limit = min(max(limit, 1 << 20), _MAPPED_BYTES)

    def _check_size(self, extents: Sequence[Extent]) -> None:
        if (size := self.current_size()) < self.size:
            raise truncated(*extents[0], size)

    def _read_ahead(self, mapped: mmap.mmap, extents: Sequence[Extent]) -> None:
        """Have all pages of mapped extents read at once, not one by one as they are touched; and
        let go of those that were touched before, if they are many.
        """
        if not _HAS_MADVISE:
            return
        with suppress(OSError):  # hints
            for offset, length in extents:
                start = offset // mmap.PAGESIZE * mmap.PAGESIZE
                if len(extents) > 1 or offset + length - start > mmap.PAGESIZE:
                    mapped.madvise(mmap.MADV_WILLNEED, start, offset + length - start)
            self._mapped += sum(length + _FAULT_BYTES for _, length in extents)
            if self._mapped > self._mapped_limit:
                self._mapped = 0
                mapped.madvise(mmap.MADV_DONTNEED)

    def _release(self) -> None:
        self._map = None  # unmapped when the last view of it is gone
        super()._release()


class ResidentFile(_ViewedFile):
    """A file that `load` reads into memory as a whole."""

    mode: ClassVar[str] = "memory"
    is_resident = True
    _way: ClassVar[str] = "memory"
    _loaded = False

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`: views of memory, once it is loaded."""
        if self._loaded:
            return super().read_many(extents)
        return [self._read_one(*extent) for extent in extents]

    def load(self) -> None:
        """See `ByteSource`: read the whole file."""
        try:
            whole = memoryview(bytearray(self.size))
            for start in range(0, self.size, _LOAD_BYTES):
                part = whole[start : start + _LOAD_BYTES]
                part[:] = self._read_one(start, len(part))
        except MemoryError as error:
            raise FileAccessError(
                f"{self.size} bytes do not fit into memory: use another io mode"
            ) from error
        self._view, self._loaded = whole.toreadonly(), True
