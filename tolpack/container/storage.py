"""Reading a pack's bytes: positioned reads, direct ones, a memory map, or everything in memory.

The default reads into private buffers, so what was verified is what is decoded and a file that is
truncated meanwhile gives an error. ``mmap`` copies nothing, but between the size check of each call
and the access another process can truncate the file, which ends in SIGBUS: choose it for files that
nobody rewrites in place (tolpack itself always replaces by rename).

Of several extents, those in the page cache are copied at once, by the thread that asks: a pool's
dispatch costs more than the copy. The others are announced to the system together, which reads them
at queue depth, and then fetched one by one. Only ``direct``, for which there is no announcing, has
threads that wait.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tolpack.container.direct import DirectReader
from tolpack.errors import ConfigError, FileAccessError, FormatError
from tolpack.runtime.files import open_regular
from tolpack.runtime.forking import Locking

IO_MODES = ("auto", "pread", "mmap", "direct", "memory")
Extent = tuple[int, int]

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


@dataclass(slots=True)
class Fetches:
    """How extents were fetched, and what that took from the file.

    ``single``: by one plain read; ``warm``: several, and in the page cache; ``queued``: several,
    announced to the system and then read; ``direct``, ``mapped``, ``memory``: in those modes.
    ``file_bytes`` counts whole blocks where direct reads have to take them, and nothing that a map
    or memory gave.
    """

    single: int = 0
    warm: int = 0
    queued: int = 0
    direct: int = 0
    mapped: int = 0
    memory: int = 0
    file_bytes: int = 0


class Storage(Locking):
    """An open file, read at offsets.

    Parameters
    ----------
    path : str or Path
        A regular file.
    io : str
        ``"auto"``: of several extents those in the page cache first, then the others at queue
        depth; one extent by one read. ``"pread"``: as ``auto``, without looking what the page cache
        has. ``"direct"``: past the page cache, 16 reads at a time. ``"mmap"``: views of a map.
        ``"memory"``: the whole file is read by `load`.

    Raises
    ------
    FileAccessError
        The file is missing, unreadable, no regular file, or on a system without direct reads.
    """

    def __init__(self, path: str | Path, io: str = "auto") -> None:
        if io not in IO_MODES:
            raise ConfigError(f"io is {io!r}, expected one of {', '.join(IO_MODES)}")
        self.mode = io
        self.fetches = Fetches()
        self.cold = False  # whether most of the extents that were read last had to be announced
        self._mapped_limit = _MAPPED_BYTES
        self._closed = False
        self._nowait = _NOWAIT if io == "auto" and _HAS_PREADV else 0
        self._mapped = 0
        self._fd = open_regular(path)
        self._close_fd = weakref.finalize(self, os.close, self._fd)  # also if nobody closes it
        self.size = self.current_size()
        self._view: memoryview | None = None
        self._map: mmap.mmap | None = None
        self._direct: DirectReader | None = None
        try:
            if self.mode == "mmap" and self.size:
                self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
                if _HAS_MADVISE:  # a fault must not read megabytes ahead
                    with suppress(OSError):
                        self._map.madvise(mmap.MADV_RANDOM)
                self._view = memoryview(self._map)
            elif self.mode == "direct":
                self._direct = DirectReader(self._fd)
        except (OSError, ValueError) as error:
            self._close_fd()
            raise FileAccessError(f"cannot use io={io!r} for {path}: {error}") from error
        self.expect_order(sequential=False)
        super().__init__()

    def renew(self) -> None:
        """See `tolpack.runtime.forking.Forked`."""
        super().renew()
        self._leases = [0]  # a lease that was taken before a fork ends where it was counted

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return exactly `length` bytes at `offset`, in private memory unless the mode is ``mmap``.

        Raises
        ------
        FormatError
            Code ``truncated``: the file has become shorter than it was at opening.
        FileAccessError
            The operating system reports an error, or the pack is closed.
        """
        return self.read_many([(offset, length)])[0]

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """Return the bytes of several extents, (offset, length); as `read`, and as fast as goes."""
        if self._fd < 0:
            raise FileAccessError("the pack is closed")
        if self._view is not None:
            return self._views(self._view, extents)
        if self._direct is not None:
            found, size = self._direct.read_many(extents, self.size)
            self._count("direct", len(extents), size)
            return found
        if len(extents) == 1:
            self._count("single", 1, extents[0][1])
            return [self._read_fd(*extents[0])]
        return self._read_cached(extents, np.empty(sum(n for _, n in extents), np.uint8).data)

    def read_equal(self, offsets: Sequence[int], length: int) -> NDArray[np.uint8]:
        """Return extents of `length` bytes each as one array, uint8 (extents, length), a copy."""
        out = np.empty((len(offsets), length), np.uint8)
        extents = [(offset, length) for offset in offsets]
        if self._view is None and self._direct is None and len(extents) > 1:
            self._read_cached(extents, out.data)
        else:
            for row, data in zip(out, self.read_many(extents)):
                row[:] = np.frombuffer(data, np.uint8)
        return out

    def current_size(self) -> int:
        """Bytes of the file now, which may be others than at opening."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise FileAccessError(f"cannot look at the file: {error.strerror or error}") from error

    def load(self) -> None:
        """Read the whole file, in mode ``memory``; called once its header was found valid."""
        if self.mode == "memory":
            try:
                whole = memoryview(bytearray(self.size))
                for start in range(0, self.size, _LOAD_BYTES):
                    part = whole[start : start + _LOAD_BYTES]
                    part[:] = self._read_fd(start, len(part))
                self._view = whole.toreadonly()
            except MemoryError as error:
                raise FileAccessError(
                    f"{self.size} bytes do not fit into memory: use another io mode"
                ) from error

    def advise(self, extents: Sequence[Extent]) -> None:
        """Ask the system to read extents ahead into the page cache; does nothing where it cannot,
        or where the page cache is not read from.
        """
        if _HAS_FADVISE and self.mode not in ("memory", "direct"):
            for offset, length in extents:
                with suppress(OSError):  # a hint
                    os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def bound_mapped(self, limit: int) -> None:
        """Let go of mapped pages after about `limit` bytes, 1 MiB at least and 32 at most."""
        self._mapped_limit = min(max(limit, 1 << 20), _MAPPED_BYTES)

    def expect_order(self, *, sequential: bool) -> None:
        """Tell the system whether the file is read from end to end, or here and there: then a read
        of some pages must not bring in their neighbours.
        """
        if _HAS_FADVISE and self.mode in ("auto", "pread"):
            advice = os.POSIX_FADV_SEQUENTIAL if sequential else os.POSIX_FADV_RANDOM
            with suppress(OSError):  # a hint
                os.posix_fadvise(self._fd, 0, 0, advice)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the file open until the end of the block, even if `close` is called meanwhile."""
        with self._lock:
            if self._closed:
                raise FileAccessError("the pack is closed")
            leases = self._leases
            leases[0] += 1
        try:
            yield
        finally:
            with self._lock:
                leases[0] -= 1
                self._release()

    def close(self) -> None:
        """Close once the last lease has ended; closing twice is allowed."""
        with self._lock:
            was_closed, self._closed = self._closed, True
            if not was_closed:
                self._release()

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _views(self, view: memoryview, extents: Sequence[Extent]) -> list[memoryview]:
        """Views of the map or of memory."""
        if self._map is not None and (size := self.current_size()) < self.size:
            raise _truncated(*extents[0], size)
        for offset, length in extents:
            if offset + length > self.size:
                raise _truncated(offset, length, self.size)
        self._count("memory" if self._map is None else "mapped", len(extents), 0)
        if self._map is not None:
            self._read_ahead(self._map, extents)
        return [view[offset : offset + length] for offset, length in extents]

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

    def _read_cached(self, extents: Sequence[Extent], out: memoryview) -> list[memoryview]:
        """Several extents through the page cache, into `out`, one after the other."""
        if self._fd < 0:
            raise FileAccessError("the pack is closed")
        buffer, found, at = out.cast("B"), [], 0
        for _, length in extents:
            found.append(buffer[at : at + length])
            at += length
        missing = [n for n, one in enumerate(extents) if not self._read_now(one[0], found[n])]
        self.cold = len(missing) > len(extents) // 8
        self.advise([extents[n] for n in missing])
        for n in missing:
            offset, length = extents[n]
            found[n][:] = self._read_fd(offset, length)
        self._count("warm", len(extents) - len(missing), len(buffer))
        self._count("queued", len(missing), 0)
        return found

    def _read_now(self, offset: int, out: memoryview) -> bool:
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

    def _count(self, way: str, extents: int, size: int) -> None:
        with self._lock:
            setattr(self.fetches, way, getattr(self.fetches, way) + extents)
            self.fetches.file_bytes += size

    def _release(self) -> None:
        if not self._closed or self._leases[0] or self._fd < 0:
            return
        self._view = None
        self._map = None  # unmapped when the last view of it is gone
        if self._direct is not None:
            self._direct.close()
        self._fd = -1  # first: a fork in between must not leave a number that is given away again
        self._close_fd()

    def _read_fd(self, offset: int, length: int) -> bytes:
        try:
            data = self._pread(offset, length)
            while len(data) < length:  # a signal or a network file system cut the read short
                more = self._pread(offset + len(data), length - len(data))
                if not more:
                    raise _truncated(offset, length, offset + len(data))
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


def _truncated(offset: int, length: int, size: int) -> FormatError:
    return FormatError(
        "truncated", f"bytes {offset} … {offset + length}", f"a file of {size} bytes", "more"
    )
