"""Extents of remote files kept on this machine, within a budget of bytes.

A cache is a folder of segments: a file of bytes, to which extents are appended as they come, and a
file of entries that say where each lies. Extents are kept as they were asked for, since rows of a
pack are always read by the same ones; pages would fetch, and store, what nobody asked for.

Processes share a cache without waiting for each other: a segment is appended to by the one that
holds its lock, and read by all. Nothing is synced, as nothing is believed: each entry has a CRC-32
over the name of its file, its place and its bytes, and what does not match is fetched again. The
segments that were not used for longest are removed when a new one needs their room.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
import uuid
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tolpack.container.byte_source import Extent
from tolpack.container.crc import crc32
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.disk_cache import cached_file
from tolpack.runtime.files import open_regular
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.runtime.sizes import parse_bytes

with contextlib.suppress(ImportError):  # on Windows
    import fcntl

# ``number`` mixes file, offset and length; two that are equal are told apart by their checksums.
_ENTRY = np.dtype([("number", "<u8"), ("at", "<u8"), ("length", "<u4"), ("crc32", "<u4")])
_PLACED = np.dtype([*_ENTRY.descr, ("segment", "<u4")])
_PLACE = struct.Struct("<QQ")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
# A segment has this part of the budget, and so many entries, at most.
_SEGMENTS = 16
_SEGMENT_ENTRIES = 1 << 16
_MOST_SEGMENTS = 64
# The folder of a cache within that of other kept files, and the names of a segment's two files.
FOLDER = "remote"
BYTES_SUFFIX, ENTRIES_SUFFIX = ".bytes", ".entries"
# Seconds after which the use of a segment is noted again.
_NOTED_SECONDS = 10.0


class _Segment:
    """An open file of bytes, and how much of it and of its entries is written."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        self.entries_path = path.with_suffix(ENTRIES_SUFFIX)
        self.size, self.count, self.noted = os.fstat(fd).st_size, 0, 0.0
        weakref.finalize(self, os.close, fd)  # once no thread reads from it

    def entries(self) -> NDArray[np.void]:
        """Read the entries; one that is not whole yet is left out."""
        with open(self.entries_path, "rb") as file:
            data = file.read(_SEGMENT_ENTRIES * _ENTRY.itemsize)
        self.count = len(data) // _ENTRY.itemsize
        return np.frombuffer(data, _ENTRY, self.count)


class _Kept(NamedTuple):
    """Where an extent lies."""

    segment: _Segment
    at: int
    length: int
    crc32: int


class ExtentCache(ForkSafe):
    """See the module. Safe to use from several threads and processes.

    Parameters
    ----------
    folder : Path
        Made when the first extent is kept.
    budget : int
        Bytes of its files; each process beyond the first may exceed it by a sixteenth.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget = folder, budget
        self._segment_bytes = max(budget // _SEGMENTS, 1)
        self._file_keys: dict[str, tuple[int, int]] = {}
        self._is_off = False
        self._forgotten: set[int] = set()
        super().__init__()
        with self._lock:
            self._load()

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`: the segment is the parent's."""
        super().reset_after_fork()
        self._writing: _Segment | None = None

    def has(self, file: str, extents: Sequence[Extent]) -> list[bool]:
        """Whether extents of a file are kept, without a look at their bytes.

        Parameters
        ----------
        file : str
            Names the file and its version.
        extents : sequence of (int, int)
            Offsets and lengths in bytes.
        """
        return [one is not None for one in self._find(file, extents)]

    def read_into(
        self, file: str, extents: Sequence[Extent], views: Sequence[memoryview],
        numbers: Sequence[int],
    ) -> list[int]:  # fmt: skip
        """Copy extents into views of their lengths.

        Parameters
        ----------
        file, extents
            As for `has`.
        views : sequence of memoryview
            One for each extent.
        numbers : sequence of int
            Which of them to copy.

        Returns
        -------
        list of int
            The numbers of those that are not kept, or not as they were.
        """
        missing, used = [], set()
        seed = self._file_key(file)[1]
        for n, kept in zip(numbers, self._find(file, [extents[n] for n in numbers])):
            if kept is not None and _copy(kept, views[n]):
                checksum = crc32(views[n], crc32(_PLACE.pack(*extents[n]), seed))
                if checksum == kept.crc32:
                    used.add(kept.segment)
                    continue
            missing.append(n)
        self._note(used)
        return missing

    def keep(self, file: str, extents: Sequence[Extent], views: Sequence[memoryview]) -> None:
        """Keep extents, given with their bytes; if the disk is full, this ends silently."""
        seed = self._file_key(file)[1]
        entries = np.zeros(len(extents), _ENTRY)
        entries["number"] = self._numbers(file, extents)
        entries["length"] = [length for _, length in extents]
        entries["crc32"] = [
            crc32(view, crc32(_PLACE.pack(*extent), seed)) for extent, view in zip(extents, views)
        ]
        with self._lock:
            if self._is_off:
                return
            try:
                for start, stop in self._batches(extents):
                    self._append(entries[start:stop], views[start:stop])
            except OSError:
                self._is_off = True

    def forget(self, file: str, extents: Sequence[Extent]) -> None:
        """Have extents read again: what is kept was damaged before it came."""
        with self._lock:
            self._forgotten.update(self._numbers(file, extents).tolist())

    def _file_key(self, file: str) -> tuple[int, int]:
        """Return what stands for a file in numbers and in checksums."""
        found = self._file_keys.get(file)
        if found is None:
            digest = hashlib.sha256(file.encode()).digest()
            found = self._file_keys[file] = int.from_bytes(digest[:8], "little"), crc32(digest)
        return found

    def _numbers(self, file: str, extents: Sequence[Extent]) -> NDArray[np.uint64]:
        places = np.array(extents, np.uint64).reshape(-1, 2) * _MIX
        return places[:, 0] ^ (places[:, 1] + np.uint64(self._file_key(file)[0]))

    def _find(self, file: str, extents: Sequence[Extent]) -> list[_Kept | None]:
        numbers = self._numbers(file, extents)
        with self._lock:
            known, recent, segments = self._known, self._recent, self._segments
            forgotten = self._forgotten
        places = np.searchsorted(known["number"], numbers, side="right") - 1
        near = known[np.maximum(places, 0)] if len(known) else np.zeros(len(numbers), _PLACED)
        found: list[_Kept | None] = []
        for number, (_, length), entry in zip(numbers.tolist(), extents, near.tolist()):
            kept = recent.get(number)
            if number in forgotten:
                kept = None
            elif kept is None and entry[0] == number and segments:
                kept = _Kept(segments[entry[4]], *entry[1:4])
            found.append(kept if kept is not None and kept.length == length else None)
        return found

    def _batches(self, extents: Sequence[Extent]) -> Iterator[tuple[int, int]]:
        """Yield runs of extents of which each fits into a segment."""
        start, size = 0, 0
        for n, (_, length) in enumerate(extents):
            if n - start == _SEGMENT_ENTRIES or size + length > self._segment_bytes:
                yield start, n
                start, size = n, 0
            size += length
        if size <= self._segment_bytes:  # else one that alone is too long
            yield start, len(extents)

    def _append(self, entries: NDArray[np.void], views: Sequence[memoryview]) -> None:
        """Append a batch to the segment that is written; called with the lock held."""
        size = int(entries["length"].sum(dtype=np.int64))
        if not 0 < size <= self._segment_bytes:
            return
        segment = self._segment_for(len(entries), size)
        ends = np.cumsum(entries["length"], dtype=np.uint64)
        entries["at"] = segment.size + ends - entries["length"]
        _write(segment.fd, b"".join(views), segment.size)
        fd = os.open(segment.entries_path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            _write(fd, entries.tobytes(), segment.count * _ENTRY.itemsize)
        finally:
            os.close(fd)
        segment.size += size
        segment.count += len(entries)
        for number, at, length, checksum in entries.tolist():
            self._recent[number] = _Kept(segment, at, length, checksum)
            self._forgotten.discard(number)
        if len(self._recent) > _SEGMENT_ENTRIES:
            self._load()

    def _segment_for(self, count: int, size: int) -> _Segment:
        """Return the segment to append to, a new one if the last has no room."""
        if self._writing is None:
            self._writing = self._take_over()
        one = self._writing
        if one is not None and os.fstat(one.fd).st_nlink and self._has_room(one, count, size):
            return one
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        path = self._folder / f"{uuid.uuid4().hex}{BYTES_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._writing = _Segment(path, fd)
        _lock(fd)
        return self._writing

    def _has_room(self, segment: _Segment, count: int, size: int) -> bool:
        most = segment.size + size <= self._segment_bytes
        return most and segment.count + count <= _SEGMENT_ENTRIES

    def _take_over(self) -> _Segment | None:
        """Return a segment that has room, and that no process appends to."""
        for known in self._segments:
            if self._has_room(known, 1, self._segment_bytes // 2):
                with contextlib.suppress(OSError):
                    one = _Segment(known.path, os.open(known.path, os.O_RDWR | os.O_CLOEXEC))
                    if _lock(one.fd):
                        one.entries()
                        return one
        return None

    def _make_room(self) -> None:
        """Remove the segments that were not used for longest, until a new one fits."""
        found = []
        for path in self._folder.glob(f"*{BYTES_SUFFIX}"):
            with contextlib.suppress(OSError):
                state, beside = path.stat(), path.with_suffix(ENTRIES_SUFFIX)
                size = state.st_size + (beside.stat().st_size if beside.exists() else 0)
                found.append((state.st_mtime_ns, size, path))
        total = sum(size for _, size, _ in found)
        left = len(found)
        for _, size, path in sorted(found):
            if total + self._segment_bytes <= self._budget and left < _MOST_SEGMENTS:
                break
            path.unlink(missing_ok=True)
            path.with_suffix(ENTRIES_SUFFIX).unlink(missing_ok=True)
            total, left = total - size, left - 1
        self._load()

    def _load(self) -> None:
        """Read all entries that there are; called with the lock held."""
        known = {one.path: one for one in getattr(self, "_segments", ())}
        segments: list[_Segment] = []
        found = [np.zeros(0, _PLACED)]
        with contextlib.suppress(OSError):
            paths = sorted(
                self._folder.glob(f"*{BYTES_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns
            )
            for path in paths[-_MOST_SEGMENTS:]:
                with contextlib.suppress(OSError, FileAccessError):
                    one = known.get(path) or _Segment(path, open_regular(path))
                    entries = one.entries()
                    placed = np.zeros(len(entries), _PLACED)
                    for name in _ENTRY.names or ():
                        placed[name] = entries[name]
                    placed["segment"] = len(segments)
                    segments.append(one)
                    found.append(placed)
        every = np.concatenate(found)
        self._known = every[np.argsort(every["number"], kind="stable")]
        self._segments = segments
        self._recent: dict[int, _Kept] = {}

    def _note(self, used: set[_Segment]) -> None:
        """Note that segments were used, and let go of those that another process removed."""
        now, gone = time.monotonic(), False
        for one in used:
            if now - one.noted > _NOTED_SECONDS:
                one.noted = now
                with contextlib.suppress(OSError):
                    os.utime(one.path)
                gone = gone or not os.fstat(one.fd).st_nlink
        if gone:
            with self._lock:
                self._load()


_caches: weakref.WeakValueDictionary[tuple[Path, int], ExtentCache] = weakref.WeakValueDictionary()


def open_extent_cache(budget: str | int) -> ExtentCache:
    """Open the cache of this user; packs of a process with the same budget share it.

    Raises
    ------
    ConfigError
        The budget is not understood, or nothing may be kept on this machine.
    """
    size = parse_bytes(budget, "disk_cache", "10GB")
    folder = cached_file(FOLDER)
    if folder is None or not hasattr(os, "pread"):
        why = "TOLPACK_CACHE is 'off'" if folder is None else "this system has no pread"
        raise ConfigError(f"disk_cache is {budget!r}, but {why}: leave one of the two out")
    folder = Path(os.path.abspath(folder))
    found = _caches.get((folder, size))
    if found is None:
        found = _caches[folder, size] = ExtentCache(folder, size)
    return found


def _lock(fd: int) -> bool:
    """Take the lock of a file until it is closed; false if another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (NameError, OSError):
        return False
    return True


def _copy(kept: _Kept, out: memoryview) -> bool:
    try:
        return os.preadv(kept.segment.fd, [out], kept.at) == len(out)
    except (OSError, OverflowError):
        return False


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
