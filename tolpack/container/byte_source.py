"""`ByteSource`: where a reader's bytes come from, whatever lies below.

`tolpack.container.verified_reader` and everything above ask for extents and know no files. A new
kind of source is one more class: it tells its size, reads many extents, and closes. The other
methods are hints and properties whose defaults suit a source that has nothing to say to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import FileAccessError, FormatError
from tolpack.runtime.fork_safety import ForkSafe

# Offset and length, in bytes.
Extent = tuple[int, int]


@dataclass(slots=True)
class FetchCounts:
    """How extents were fetched, and how many bytes of the file that took.

    ``single``: by one plain read; ``warm``: several, and in the page cache; ``queued``: several,
    announced to the system and then read; ``direct``, ``mapped``, ``memory``: in those modes;
    ``remote``: from object storage, by ``requests``; ``disk_cache``: remote ones that were kept on
    this machine. ``file_bytes`` counts whole blocks where direct reads have to take them, whole
    ranges where requests ask for them, and nothing that a map, memory or the disk cache gave.
    """

    single: int = 0
    warm: int = 0
    queued: int = 0
    direct: int = 0
    mapped: int = 0
    memory: int = 0
    remote: int = 0
    disk_cache: int = 0
    requests: int = 0
    file_bytes: int = 0


class ByteSource(ForkSafe, ABC):
    """The bytes of one pack, read at offsets. Safe to use from several threads.

    Attributes
    ----------
    mode : str
        Name for `Pack.stats`.
    size : int
        Bytes of the pack when it was opened.
    fetches : FetchCounts
        What was read so far.
    is_closed : bool
        Whether it was closed, and the last lease has ended.
    is_cold : bool
        Whether most of the extents that were read last had to be waited for.
    is_remote : bool
        Whether each read waits for a network, so that all extents of a lookup are advised before
        the first is read. Those that were advised are on their way until they are read.
    is_resident : bool
        Whether all bytes are in memory, so that there is nothing to read ahead.
    caches_advised : bool
        Whether the system caches extents that were advised, so that a later read finds them.
        Otherwise a reader ahead keeps them itself.
    """

    mode: ClassVar[str]
    is_resident: bool = False
    caches_advised: bool = False
    is_remote: bool = False
    size: int

    def __init__(self) -> None:
        self.fetches = FetchCounts()
        self.is_closed = self.is_cold = False
        self._closing = False
        super().__init__()

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        super().reset_after_fork()
        self._leases = [0]  # a lease that was taken before a fork ends where it was counted

    @abstractmethod
    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """Return the bytes of several extents, in order.

        Raises
        ------
        FormatError
            Code ``truncated``: there are fewer bytes than at opening.
        FileAccessError
            They cannot be read, or the source is closed.
        """

    @abstractmethod
    def _release(self) -> None:
        """Let go of everything; nobody reads any more, and nobody will."""

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return exactly `length` bytes at `offset`; errors as of `read_many`."""
        return self.read_many([(offset, length)])[0]

    def read_equal(self, offsets: Sequence[int], length: int) -> NDArray[np.uint8]:
        """Return extents of `length` bytes each as one array, uint8 (extents, length), a copy."""
        out = np.empty((len(offsets), length), np.uint8)
        found = self.read_many([(offset, length) for offset in offsets])
        for row, data in zip(out, found):
            row[:] = np.frombuffer(data, np.uint8)
        return out

    def forget(self, extents: Sequence[Extent]) -> bool:
        """Let go of kept copies of extents, whose checksums do not match; returns whether there
        may be others, so that reading again makes sense.
        """
        return False

    def current_size(self) -> int:
        """Return the bytes that there are now, which may be others than at opening."""
        return self.size

    def load(self) -> None:
        """Prepare for lookups, now that the pack's header was found valid."""

    def advise(self, extents: Sequence[Extent]) -> None:
        """Announce extents that will be read soon: a hint."""

    def expect_order(self, *, sequential: bool) -> None:
        """Tell whether reads go from end to end, or here and there: a hint."""

    def limit_mapped(self, limit: int) -> None:
        """Let go of mapped pages after about `limit` bytes: a hint."""

    def lease(self) -> Lease:
        """Keep the source open until the end of the block, even if `close` is called meanwhile."""
        return Lease(self)

    def close(self) -> None:
        """Close once the last lease has ended; closing twice is allowed."""
        with self._lock:
            self._closing = True
            self._release_unused()

    def _begin_lease(self) -> list[int]:
        with self._lock:
            if self._closing:
                raise closed()
            self._leases[0] += 1
            return self._leases

    def _end_lease(self, leases: list[int]) -> None:
        with self._lock:
            leases[0] -= 1
            self._release_unused()

    def _release_unused(self) -> None:
        if self._closing and not self._leases[0] and not self.is_closed:
            self.is_closed = True
            self._release()

    def _count(self, way: str, extents: int, size: int) -> None:
        with self._lock:
            setattr(self.fetches, way, getattr(self.fetches, way) + extents)
            self.fetches.file_bytes += size


class Lease:
    """See `ByteSource.lease`. A class, because a generator takes a microsecond more."""

    __slots__ = ("_leases", "_source")

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def __enter__(self) -> None:
        self._leases = self._source._begin_lease()

    def __exit__(self, *_: object) -> None:
        self._source._end_lease(self._leases)


def closed() -> FileAccessError:
    """Return the error for a source that was closed."""
    return FileAccessError("the pack is closed")


def truncated(offset: int, length: int, size: int) -> FormatError:
    """Return the error for an extent that reaches beyond the `size` bytes that there are."""
    return FormatError(
        "truncated", f"bytes {offset} … {offset + length}", f"a file of {size} bytes", "more"
    )
