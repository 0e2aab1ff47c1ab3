"""Reading a pack's bytes: positioned reads, a memory map, or everything in memory.

The default reads into a private buffer, so what was verified is what is decoded and a file that
is truncated meanwhile gives an error. ``mmap`` copies nothing, but between the size check of each
call and the access another process can truncate the file, which ends in SIGBUS: choose it for
files that nobody rewrites in place (tolpack itself always replaces by rename).
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tolpack.errors import ConfigError, FileAccessError, FormatError

IO_MODES = ("auto", "pread", "mmap", "memory")
_HAS_PREAD = hasattr(os, "pread")
_HAS_MADVISE = hasattr(mmap.mmap, "madvise")


class Storage:
    """An open file, read at offsets.

    Parameters
    ----------
    path : str or Path
        A regular file.
    io : str
        ``"pread"``, ``"mmap"`` or ``"memory"``; ``"auto"`` means ``"pread"``.

    Raises
    ------
    FileAccessError
        The file is missing, unreadable, or no regular file.
    """

    def __init__(self, path: str | Path, io: str = "auto") -> None:
        if io not in IO_MODES:
            raise ConfigError(f"io is {io!r}, expected one of {', '.join(IO_MODES)}")
        self.mode = "pread" if io == "auto" else io
        self._lock = threading.Lock()
        self._leases = 0
        self._closed = False
        self._fd = _open_regular(path)
        self.size = os.fstat(self._fd).st_size
        self._view: memoryview | None = None
        self._map: mmap.mmap | None = None
        try:
            if self.mode == "mmap" and self.size:
                self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
                if _HAS_MADVISE:  # a fault must not read megabytes ahead
                    with suppress(OSError):
                        self._map.madvise(mmap.MADV_RANDOM)
                self._view = memoryview(self._map)
        except (OSError, ValueError) as error:
            os.close(self._fd)
            raise FileAccessError(f"cannot map {path}: {error}") from error

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return exactly `length` bytes at `offset`; a view unless the mode is ``pread``.

        Raises
        ------
        FormatError
            Code ``truncated``: the file has become shorter than it was at opening.
        FileAccessError
            The operating system reports an error, or the pack is closed.
        """
        if self._fd < 0:
            raise FileAccessError("the pack is closed")
        if self._view is None:
            return self._read_fd(offset, length)
        if self._map is not None and (size := self.current_size()) < self.size:
            raise _truncated(offset, length, size)
        if offset + length > self.size:
            raise _truncated(offset, length, self.size)
        self._read_ahead(offset, length)
        return self._view[offset : offset + length]

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
                self._view = memoryview(self._read_fd(0, self.size))
            except MemoryError as error:
                raise FileAccessError(
                    f"{self.size} bytes do not fit into memory: use another io mode"
                ) from error

    def advise(self, extents: list[tuple[int, int]]) -> None:
        """Ask the system to read (offset, length) extents ahead; does nothing where it cannot."""
        if hasattr(os, "posix_fadvise") and self.mode != "memory":
            for offset, length in extents:
                with suppress(OSError):  # a hint
                    os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the file open until the end of the block, even if `close` is called meanwhile."""
        with self._lock:
            if self._closed:
                raise FileAccessError("the pack is closed")
            self._leases += 1
        try:
            yield
        finally:
            with self._lock:
                self._leases -= 1
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

    def _read_ahead(self, offset: int, length: int) -> None:
        """Have all pages of a mapped extent read at once, not one by one as they are touched."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and offset + length - start > mmap.PAGESIZE and _HAS_MADVISE:
            with suppress(OSError):  # a hint
                self._map.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    def _release(self) -> None:
        if not self._closed or self._leases or self._fd < 0:
            return
        self._view = None
        self._map = None  # unmapped when the last view of it is gone
        os.close(self._fd)
        self._fd = -1

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


def _open_regular(path: str | Path) -> int:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileAccessError(f"cannot open {path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileAccessError(f"cannot open {path}: not a regular file")
    return fd


def _truncated(offset: int, length: int, size: int) -> FormatError:
    return FormatError(
        "truncated", f"bytes {offset} … {offset + length}", f"a file of {size} bytes", "more"
    )
