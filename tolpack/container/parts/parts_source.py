"""`PartsSource`: the bytes of a pack that lie in several part files, as those of one file.

Offsets are those in the pack. Preamble and header come from the manifest, sections from the pieces
in part files, and all other bytes are zeros. A part file is opened when it is first read, and its
length is compared with the manifest's; block checksums, which cover pack id, table and slot, tell
whether its content is the pack's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from tolpack.container.byte_source import ByteSource, Extent, FetchCounts, closed, truncated
from tolpack.container.crc import compare, crc32
from tolpack.container.header import Header, parse_header
from tolpack.container.header_checks import check_header
from tolpack.container.parts.check_pieces import check_pieces
from tolpack.container.parts.manifest import Manifest, PartFile
from tolpack.container.preamble import PREAMBLE_BYTES, Preamble, parse_preamble
from tolpack.errors import FileAccessError, FormatError
from tolpack.runtime.pool import Pool
from tolpack.storage.folder import NoSuchFileError

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

# Opens a part file; the source closes it.
OpenFile = Callable[[PartFile], ByteSource]
# Part files that are read at once, where reads wait for a disk or a network.
_FILES_AT_ONCE = 32
# Part files that are kept open: systems limit how many a process may have.
_OPEN_FILES = 256


def read_manifest_header(manifest: Manifest) -> tuple[Preamble, Header]:
    """Check what a manifest says of its pack, and return the pack's preamble and header.

    Raises
    ------
    FormatError, ChecksumError, UnsupportedVersionError
        As of a pack; codes ``manifest`` and ``piece``.
    """
    declared = int.from_bytes(manifest.preamble[16:24], "little")
    preamble = parse_preamble(manifest.preamble, declared)
    if len(manifest.header) != preamble.header_length:
        found, expected = len(manifest.header), preamble.header_length
        raise FormatError("manifest", "manifest.header", f"{found} bytes", f"{expected} bytes")
    compare("header-checksum", "manifest.header", crc32(manifest.header), preamble.header_crc32)
    header = parse_header(manifest.header)
    check_header(header, preamble)
    check_pieces(manifest, header)
    return preamble, header


@dataclass(frozen=True, slots=True)
class _Segment:
    """Bytes ``start`` … ``end`` of the pack: at ``offset`` of part file ``file``, of the manifest's
    (-1), or zeros (-2).
    """

    start: int
    end: int
    file: int
    offset: int = 0


_MANIFEST, _ZEROS = -1, -2


class PartsSource(ByteSource):
    """See the module.

    Parameters
    ----------
    manifest : Manifest
        What lies where.
    open_file : callable
        Opens a part file; all are opened alike.
    kind : type of ByteSource
        What `open_file` returns, whose way of reading is this source's.

    Raises
    ------
    FormatError
        As `read_manifest_header`.
    """

    mode: ClassVar[str] = "parts"

    def __init__(self, manifest: Manifest, open_file: OpenFile, kind: type[ByteSource]) -> None:
        preamble, header = read_manifest_header(manifest)
        self.manifest = manifest
        self.size = preamble.file_length
        self.is_resident, self.caches_advised = kind.is_resident, kind.caches_advised
        self.is_remote = kind.is_remote
        self._open_file = open_file
        self._start = manifest.preamble + manifest.header
        self._segments = _segments(manifest, header)
        self._begins = [segment.start for segment in self._segments]
        self._starts = np.array(self._begins)
        self._ends = np.array([segment.end for segment in self._segments])
        self._files: dict[int, ByteSource] = {}
        self._retired: list[ByteSource] = []
        self._past = FetchCounts()
        self._hints: dict[str, int] = {}
        self._pool = Pool(_FILES_AT_ONCE, "parts")
        super().__init__()

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`: part files one after the other, or at once where reads wait."""
        if self.is_closed:
            raise closed()
        by_file: dict[int, list[Extent]] = defaultdict(list)
        wanted = []
        for offset, length in extents:
            found = self._split(offset, length)
            wanted.append(found)
            for file, start, count in found:
                by_file[file].append((start, count))
        read = {file: iter(data) for file, data in self._map(self._read_file, by_file)}
        return [
            next(read[found[0][0]]) if len(found) == 1
            else b"".join(next(read[file]) for file, _, _ in found)
            for found in wanted
        ]  # fmt: skip

    def read_equal(self, offsets: Sequence[int], length: int) -> NDArray[np.uint8]:
        """See `ByteSource`."""
        begins = np.asarray(offsets, np.int64)
        numbers = self._starts.searchsorted(begins, "right") - 1
        places = {self._segments[n]: np.flatnonzero(numbers == n) for n in np.unique(numbers)}
        inside = (begins + length <= self._ends[numbers]).all()
        if self.is_closed or not inside or any(one.file < 0 for one in places):
            return super().read_equal(offsets, length)
        out = np.empty((len(begins), length), np.uint8)
        wanted = {one: begins[rows] for one, rows in places.items()}
        for segment, found in self._map(partial(self._read_rows, length=length), wanted):
            out[places[segment]] = found
        return out

    def file(self, number: int) -> ByteSource:
        """Return part file `number`, opened; this source closes it, perhaps soon: see `reading`.

        Raises
        ------
        FormatError
            Code ``part-missing``; ``truncated`` and ``trailing-bytes``: its length is not the
            manifest's.
        FileAccessError
            It cannot be read.
        """
        found = self._files.get(number)
        if found is not None:
            return found
        described = self.manifest.files[number]
        try:
            opened = self._open_file(described)
        except FileAccessError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise _missing(described) from error
            raise
        try:
            _check_length(described, opened.size)
            opened.load()
            self._pass_hints(opened)
        except BaseException:
            opened.close()
            raise
        with self._lock:
            kept = self._files.setdefault(number, opened)
            unused = [] if kept is opened else [opened]
            while len(self._files) > _OPEN_FILES and not self.is_resident:
                unused.append(self._files.pop(next(iter(self._files))))
        for file in unused:
            file.close()
        with self._lock:  # one that is being read counts on until its last lease ends
            self._retired += unused
            ended = [file for file in self._retired if file.is_closed]
            self._retired = [file for file in self._retired if file not in ended]
            self._past = _total([self._past, *(file.fetches for file in ended)])
        return kept

    @contextmanager
    def reading(self, number: int) -> Iterator[ByteSource]:
        """Keep part file `number` open until the end of the block; its errors name it."""
        while True:
            file = self.file(number)
            try:
                lease = file.lease()
                lease.__enter__()
                break
            except FileAccessError:  # closed meanwhile, for another one
                if self.is_closed:
                    raise
        try:
            yield file
        except NoSuchFileError as error:  # elsewhere, nothing is asked for until the first read
            raise _missing(self.manifest.files[number]) from error
        except FormatError as error:
            place = f"{self.manifest.files[number].name}, {error.place}"
            raise FormatError(error.code, place, error.found, error.expected) from error
        finally:
            lease.__exit__()
        self.is_cold = file.is_cold

    def _pass_hints(self, file: ByteSource) -> None:
        if "sequential" in self._hints:
            file.expect_order(sequential=bool(self._hints["sequential"]))
        if "mapped" in self._hints:
            file.limit_mapped(self._hints["mapped"])

    def forget(self, extents: Sequence[Extent]) -> bool:
        """See `ByteSource`."""
        found = False
        for extent in extents:
            for number, offset, length in self._split(*extent):
                if number >= 0:
                    with self.reading(number) as file:
                        found = file.forget([(offset, length)]) or found
        return found

    def place(self, offset: int) -> tuple[int, int]:
        """Return the part file, by its number, that holds a byte of a section of the pack, and the
        offset there.
        """
        ((file, start, _),) = self._split(offset, 1)
        return file, start

    def current_size(self) -> int:
        """See `ByteSource`; another size than at opening if a part file has another one."""
        for number, file in enumerate(self.manifest.files):
            try:
                with self.reading(number) as opened:
                    found = opened.current_size()
            except (FormatError, FileAccessError):  # which whoever reads it is told
                continue
            if found != file.length_bytes:
                return self.size + found - file.length_bytes
        return self.size

    def load(self) -> None:
        """See `ByteSource`."""
        if self.is_resident:
            for number in range(len(self.manifest.files)):
                self.file(number)

    def advise(self, extents: Sequence[Extent]) -> None:
        """See `ByteSource`."""
        by_file: dict[int, list[Extent]] = defaultdict(list)
        for extent in extents:
            for file, offset, length in self._split(*extent):
                by_file[file].append((offset, length))
        for file, some in by_file.items():
            if file >= 0:
                with self.reading(file) as opened:
                    opened.advise(some)

    def expect_order(self, *, sequential: bool) -> None:
        """See `ByteSource`."""
        self._hints["sequential"] = sequential
        for file in list(self._files.values()):
            file.expect_order(sequential=sequential)

    def limit_mapped(self, limit: int) -> None:
        """See `ByteSource`."""
        self._hints["mapped"] = limit
        for file in list(self._files.values()):
            file.limit_mapped(limit)

    @property
    def fetches(self) -> FetchCounts:
        """What was read so far, of all part files."""
        with self._lock:
            files = [*self._retired, *self._files.values()]
            return _total([self._past, *(file.fetches for file in files)])

    @fetches.setter
    def fetches(self, counts: FetchCounts) -> None:
        self._past = counts
        for file in [*self._retired, *self._files.values()]:
            file.fetches = FetchCounts()

    def _map(self, read: Callable[[tuple[K, V]], T], wanted: dict[K, V]) -> list[tuple[K, T]]:
        """Return what `read` makes of each item, with its key: at once where reads wait."""
        items = list(wanted.items())
        waits = len(items) > 1 and (self.is_remote or self.is_cold)
        found = self._pool.map(read, items) if waits else [read(item) for item in items]
        return list(zip(wanted, found))

    def _read_file(self, wanted: tuple[int, list[Extent]]) -> Sequence[bytes | memoryview]:
        number, extents = wanted
        if number == _MANIFEST:
            return [self._start[offset : offset + length] for offset, length in extents]
        if number == _ZEROS:
            return [bytes(length) for _, length in extents]
        with self.reading(number) as file:
            return file.read_many(extents)

    def _read_rows(
        self, wanted: tuple[_Segment, NDArray[np.int64]], length: int
    ) -> NDArray[np.uint8]:
        segment, begins = wanted
        with self.reading(segment.file) as file:
            return file.read_equal((begins - segment.start + segment.offset).tolist(), length)

    def _split(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return where an extent of the pack lies: file, offset and length of each of its parts."""
        if offset + length > self.size:
            raise truncated(offset, length, self.size)
        number, found = bisect_right(self._begins, offset) - 1, []
        while length:
            segment = self._segments[number]
            count = min(length, segment.end - offset)
            found.append((segment.file, segment.offset + offset - segment.start, count))
            offset, length, number = offset + count, length - count, number + 1
        return found

    def _release(self) -> None:
        self._pool.close()
        for file in self._files.values():
            file.close()


def local_files(path: Path, source: ByteSource) -> list[Path]:
    """Return the files that hold a pack which was opened at `path`: itself, or its part files."""
    if not isinstance(source, PartsSource):
        return [path]
    folder = path if path.is_dir() else path.parent
    return [folder / file.name for file in source.manifest.files]


def _segments(manifest: Manifest, header: Header) -> list[_Segment]:
    """Return where all bytes of a pack are, in their order."""
    end = PREAMBLE_BYTES + len(manifest.header)
    segments = [_Segment(0, end, _MANIFEST)]
    ends = [section.offset_bytes for section in header.sections]
    placed = []
    for file, piece in manifest.pieces:
        start = ends[piece.section]
        ends[piece.section] = start + piece.length_bytes
        placed.append(_Segment(start, ends[piece.section], file, piece.offset_bytes))
    for segment in sorted(placed, key=lambda one: one.start):
        if segment.start > end:
            segments.append(_Segment(end, segment.start, _ZEROS))
        segments.append(segment)
        end = segment.end
    return segments


def _total(counts: Sequence[FetchCounts]) -> FetchCounts:
    names = [one.name for one in fields(FetchCounts)]
    return FetchCounts(*(sum(getattr(one, name) for one in counts) for name in names))


def _missing(file: PartFile) -> FormatError:
    expected = "the part file that the manifest names"
    return FormatError("part-missing", file.name, "no file", expected)


def _check_length(file: PartFile, size: int) -> None:
    if size != file.length_bytes:
        code = "truncated" if size < file.length_bytes else "trailing-bytes"
        raise FormatError(code, file.name, f"{size} bytes", f"{file.length_bytes} bytes")
