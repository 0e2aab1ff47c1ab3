"""Reads past the page cache (``O_DIRECT``), several at a time.

For tables that are much larger than memory, whose pages would only push out others. Direct reads
take whole 4 KiB blocks into aligned memory; neighbouring extents are read together.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from tolpack.container.byte_source import Extent, closed, truncated
from tolpack.container.local_file import LocalFile
from tolpack.errors import FileAccessError
from tolpack.runtime.pool import Pool

with suppress(ImportError):  # on Windows, which has no direct reads
    import fcntl

ALIGNMENT = 4096
# Reads that wait at the same time.
_DEPTH = 16
# Neighbouring extents are joined up to this size.
_JOINED_BYTES = 1 << 20
# From here on large pages are worth asking for.
_LARGE_BYTES = 2 << 20


class DirectFile(LocalFile):
    """Reads past the page cache, 16 at a time; needs a system and a file system that can."""

    mode: ClassVar[str] = "direct"

    def _set_up(self) -> None:
        if not hasattr(os, "O_DIRECT"):
            raise OSError("this system has no direct reads: use another io mode")
        fd = self._fd
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        except OSError as error:
            raise OSError("this file system has no direct reads: use another io mode") from error
        self._pool = Pool(_DEPTH, "direct")

    def read_many(self, extents: Sequence[Extent]) -> Sequence[memoryview]:
        """See `ByteSource`: into private memory."""
        if self.is_closed:
            raise closed()
        found = [memoryview(b"")] * len(extents)
        joined = _joined(extents)
        work, buffer, at = [], _aligned(sum(stop - start for start, stop, _ in joined)), 0
        for start, stop, numbers in joined:
            work.append((start, buffer[at : at + stop - start], numbers))
            at += stop - start
        if len(work) == 1:
            self._read(extents, work, found)
        else:
            parts = [work[n::_DEPTH] for n in range(min(_DEPTH, len(work)))]
            self._pool.map(lambda part: self._read(extents, part, found), parts)
        size = sum(min(stop, self.size) - start for start, stop, _ in joined)
        self._count("direct", len(extents), size)
        return found

    def _release(self) -> None:
        self._pool.close()
        super()._release()

    def _read(
        self,
        extents: Sequence[Extent],
        work: Sequence[tuple[int, memoryview, list[int]]],
        found: list[memoryview],
    ) -> None:
        """Read joined extents one after the other, each into its part of the buffer."""
        for start, buffer, numbers in work:
            try:
                size = _fill(self._fd, buffer, start)
            except OSError as error:
                raise FileAccessError(
                    f"reading {len(buffer)} bytes at {start} failed: {error.strerror or error}"
                ) from error
            for n in numbers:
                offset, length = extents[n]
                if offset + length > start + size:
                    raise truncated(offset, length, start + size)
                found[n] = buffer[offset - start : offset - start + length]


def _aligned(size: int) -> memoryview:
    """Memory of its own pages, large ones if there are."""
    buffer = mmap.mmap(-1, max(size, ALIGNMENT))
    if size >= _LARGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a hint
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(buffer)


def _fill(fd: int, buffer: memoryview, offset: int) -> int:
    """Read until the buffer is full or the file ends; returns how many bytes."""
    size = 0
    while size < len(buffer):
        read = os.preadv(fd, [buffer[size:]], offset + size)
        size += read
        if not read or offset + size >= os.fstat(fd).st_size:
            break
        size -= size % ALIGNMENT  # a short read in the middle: on from a whole block
    return size


def _joined(extents: Sequence[Extent]) -> list[tuple[int, int, list[int]]]:
    """Aligned (start, stop, numbers of extents) that cover all extents, in order of their place."""
    found: list[tuple[int, int, list[int]]] = []
    for n in sorted(range(len(extents)), key=lambda n: extents[n]):
        offset, length = extents[n]
        start, stop = (
            offset // ALIGNMENT * ALIGNMENT,
            -(-(offset + length) // ALIGNMENT) * ALIGNMENT,
        )
        if found and start <= found[-1][1] and stop - found[-1][0] <= _JOINED_BYTES:
            first, last, numbers = found[-1]
            numbers.append(n)
            found[-1] = (first, max(last, stop), numbers)
        else:
            found.append((start, max(stop, start + ALIGNMENT), [n]))
    return found
