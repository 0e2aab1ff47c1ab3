"""A file in object storage as a source of bytes.

All extents of a call are asked for at once, neighbours by one request, so that a lookup waits for
few round trips however many rows it has. `advise` sends the requests and returns: a later read
takes what they bring. An order from end to end is read ahead in segments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tolpack.container.byte_source import ByteSource, Extent, closed, truncated
from tolpack.container.extent_cache import ExtentCache, open_extent_cache
from tolpack.container.parts.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_manifest
from tolpack.container.parts.parts_source import PartsSource
from tolpack.storage.folder import NoSuchFileError
from tolpack.storage.locations import split_location
from tolpack.storage.ranges import RANGE_BYTES, joined, pieces
from tolpack.storage.remote_folder import RemoteFolder
from tolpack.storage.remote_object import RemoteObject

# What opening reads: preamble and header of most packs.
_START_BYTES = 64 << 10
# Extents that were advised and not read yet: the oldest are forgotten beyond this.
_ADVISED_BYTES = 128 << 20
# Segments that are read ahead from end to end, and those that are kept.
_SEGMENTS_AHEAD, _SEGMENTS_KEPT = 4, 12


class _Coming:
    """An extent on its way: a place in the answer to a request."""

    __slots__ = ("_answer", "_length", "_start")

    def __init__(self, answer: Future[memoryview], start: int, length: int) -> None:
        self._answer, self._start, self._length = answer, start, length

    def wait(self) -> memoryview:
        return self._answer.result()[self._start : self._start + self._length]

    def cancel(self) -> None:
        self._answer.cancel()

    @property
    def failed(self) -> bool:
        """Whether there is no answer, and never will be."""
        answer = self._answer
        return answer.cancelled() or (answer.done() and answer.exception() is not None)


class RemoteFile(ByteSource):
    """An object of object storage; see the module.

    Parameters
    ----------
    folder : RemoteFolder
        Where it lies; files of one folder share its connections.
    name : str
        Its name there.
    size : int, optional
        Bytes that it must have, if that is known and its name tells its content: nothing is read
        until the first read, which compares the size.
    disk_cache : ExtentCache, optional
        Keeps on this machine what was read.

    Raises
    ------
    FileAccessError
        The object cannot be read; `tolpack.storage.folder.NoSuchFileError`: there is none.
    FormatError
        Of any later read, code ``changed``: the object was replaced since it was opened;
        ``truncated`` or ``trailing-bytes``: it has not `size`.
    """

    mode: ClassVar[str] = "remote"
    is_remote = True
    caches_advised = True

    def __init__(
        self,
        folder: RemoteFolder,
        name: str,
        size: int | None = None,
        disk_cache: ExtentCache | None = None,
    ) -> None:
        self._object = RemoteObject(folder, name, size)
        self._start = memoryview(b"")
        self._cache = disk_cache
        if size is None:
            self._start = self._object.read_start(_START_BYTES)
            version = self._object.version
            size = 0 if version is None else version.size
            self._cache_key = f"{self._object.url} {version}"
        else:
            self._cache_key = f"{self._object.url} {size} bytes"
        self.size = size
        super().__init__()

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        super().reset_after_fork()
        self._advised: OrderedDict[Extent, _Coming] = OrderedDict()
        self._advised_bytes = 0
        self._segments: OrderedDict[int, Future[memoryview]] = OrderedDict()
        self._is_sequential = False

    def read_many(self, extents: Sequence[Extent]) -> Sequence[memoryview]:
        """See `ByteSource`: into private memory."""
        buffer = np.empty(sum(length for _, length in extents), np.uint8).data
        views, at = [], 0
        for _, length in extents:
            views.append(buffer[at : at + length])
            at += length
        self._read_into(extents, views)
        return views

    def read_equal(self, offsets: Sequence[int], length: int) -> NDArray[np.uint8]:
        """See `ByteSource`."""
        out = np.empty((len(offsets), length), np.uint8)
        self._read_into([(offset, length) for offset in offsets], [row.data for row in out])
        return out

    def forget(self, extents: Sequence[Extent]) -> bool:
        """See `ByteSource`: an answer may have been damaged on its way, and kept so."""
        if self._cache is None:
            return False
        self._cache.forget(self._cache_key, extents)
        return True

    def current_size(self) -> int:
        """See `ByteSource`; `FormatError` if the object was replaced."""
        return self._object.look().size

    def load(self) -> None:
        """See `ByteSource`: what opening read is not needed any more."""
        self._start = memoryview(b"")

    def advise(self, extents: Sequence[Extent]) -> None:
        """See `ByteSource`: send requests for what is neither kept nor on its way."""
        if self.is_closed:
            return
        if self._cache is not None:
            known = self._cache.has(self._cache_key, extents)
            extents = [one for one, kept in zip(extents, known) if not kept]
        with self._lock:
            extents = [one for one in dict.fromkeys(extents) if one not in self._advised]
        small = [one for one in extents if 0 < one[1] <= RANGE_BYTES and sum(one) <= self.size]
        coming = self._begin(small)
        with self._lock:
            for extent, one in zip(small, coming):
                if extent not in self._advised:  # else another thread was first
                    self._advised[extent] = one
                    self._advised_bytes += extent[1]
            while self._advised_bytes > _ADVISED_BYTES:
                (_, length), oldest = self._advised.popitem(last=False)
                self._advised_bytes -= length
                oldest.cancel()

    def expect_order(self, *, sequential: bool) -> None:
        """See `ByteSource`."""
        with self._lock:
            self._is_sequential = sequential
            self._segments.clear()

    def _read_into(self, extents: Sequence[Extent], views: Sequence[memoryview]) -> None:
        if self.is_closed:
            raise closed()
        for offset, length in extents:
            if offset + length > self.size:
                raise truncated(offset, length, self.size)
        if self._is_sequential:
            for extent, view in zip(extents, views):
                self._read_sequential(extent, view)
            self._count("remote", len(extents), 0)
            return
        missing = [n for n, view in enumerate(views) if not self._copy_start(extents[n], view)]
        if self._cache is not None:
            missing = self._cache.read_into(self._cache_key, extents, views, missing)
            self._count("disk_cache", len(extents) - len(missing), 0)
        self.is_cold = len(missing) > len(extents) // 8
        if missing:
            self._fetch([extents[n] for n in missing], [views[n] for n in missing])

    def _copy_start(self, extent: Extent, out: memoryview) -> bool:
        """Copy an extent that opening has read; true also if there is nothing to copy."""
        offset, length = extent
        if offset + length > len(self._start):
            return length == 0
        out[:] = self._start[offset : offset + length]
        return True

    def _fetch(self, extents: Sequence[Extent], views: Sequence[memoryview]) -> None:
        """Take extents from requests that were sent for them, or send some now."""
        coming = self._take_advised(extents)
        others = [n for n, one in enumerate(coming) if one is None]
        cut = [list(pieces(*extents[n])) for n in others]
        begun = iter(self._begin([piece for some in cut for piece in some]))
        answers = {n: [next(begun) for _ in some] for n, some in zip(others, cut)}
        try:
            for n, (one, view) in enumerate(zip(coming, views)):
                at = 0
                for answer in answers.get(n, [] if one is None else [one]):
                    data = answer.wait()
                    view[at : at + len(data)] = data
                    at += len(data)
        except BaseException:
            for some in answers.values():
                for one in some:
                    one.cancel()
            raise
        self._count("remote", len(extents), 0)
        if self._cache is not None:
            self._cache.keep(self._cache_key, extents, views)

    def _take_advised(self, extents: Sequence[Extent]) -> list[_Coming | None]:
        """Take those of `extents` that were advised; a request that has failed is sent again."""
        with self._lock:
            if not self._advised:
                return [None] * len(extents)
            found = [self._advised.pop(extent, None) for extent in extents]
            taken = zip(extents, found)
            self._advised_bytes -= sum(length for (_, length), one in taken if one is not None)
        return [None if one is None or one.failed else one for one in found]

    def _begin(self, extents: Sequence[Extent]) -> list[_Coming]:
        """Send requests for extents of at most `RANGE_BYTES` each."""
        found: dict[int, _Coming] = {}
        ranges = joined(extents)
        answers = self._object.begin([(one.start, one.stop) for one in ranges])
        for one, answer in zip(ranges, answers):
            for n in one.numbers:
                offset, length = extents[n]
                found[n] = _Coming(answer, offset - one.start, length)
        self._count("requests", len(ranges), sum(one.stop - one.start for one in ranges))
        return [found[n] for n in range(len(extents))]

    def _read_sequential(self, extent: Extent, out: memoryview) -> None:
        """Copy an extent from segments of the file, and have the ones after it read ahead."""
        offset, length = extent
        first, last = offset // RANGE_BYTES, (offset + max(length, 1) - 1) // RANGE_BYTES
        with self._lock:
            wanted = range(first, last + 1 + _SEGMENTS_AHEAD)
            begun = {n: self._segment(n) for n in wanted if n * RANGE_BYTES < self.size}
            while len(self._segments) > max(_SEGMENTS_KEPT, len(wanted)):
                self._segments.popitem(last=False)
        at = 0
        while at < length:
            number, within = divmod(offset + at, RANGE_BYTES)
            data = begun[number].result()[within : within + length - at]
            out[at : at + len(data)] = data
            at += len(data)

    def _segment(self, number: int) -> Future[memoryview]:
        """Return a segment, kept or on its way; called with the lock held."""
        found = self._segments.pop(number, None)
        if found is None or (found.done() and found.exception() is not None):
            start = number * RANGE_BYTES
            stop = min(start + RANGE_BYTES, self.size)
            found = self._object.begin([(start, stop)])[0]
            self.fetches.requests += 1
            self.fetches.file_bytes += stop - start
        self._segments[number] = found
        return found

    def _release(self) -> None:
        for one in self._advised.values():
            one.cancel()
        self._advised.clear()
        self._segments.clear()
        self._start = memoryview(b"")


def open_remote(url: str, disk_cache: str | int | None = None) -> ByteSource:
    """Open the pack that a URL names, with a disk cache of so many bytes: one object, a manifest
    (``.json``), or the folder that holds one.

    Raises
    ------
    ConfigError
        The URL is of no known kind or names no file, or there can be no such cache.
    FileAccessError, FormatError
        As `RemoteFile` and `PartsSource`.
    """
    cache = None if disk_cache is None else open_extent_cache(disk_cache)
    scheme, _, rest = url.partition("://")
    is_folder = url.endswith("/") or "/" not in rest  # a bucket is one
    place = f"{scheme}://{rest.rstrip('/')}/{MANIFEST_NAME}" if is_folder else url
    location, name = split_location(place)
    if not place.endswith(".json"):
        try:
            return RemoteFile(RemoteFolder(str(location)), name, disk_cache=cache)
        except NoSuchFileError:
            if RemoteFolder(url).size(MANIFEST_NAME) is None:
                raise
        location, name = url, MANIFEST_NAME
    folder = RemoteFolder(str(location))
    manifest = parse_manifest(folder.read_whole(name, MAX_MANIFEST_BYTES))
    return PartsSource(
        manifest, lambda file: RemoteFile(folder, file.name, file.length_bytes, cache), RemoteFile
    )
