"""`PartsSource`: the bytes of a pack that lie in several part files, as those of one file.

Offsets are those in the pack. Preamble and header come from the manifest, sections from the pieces
in part files, and all other bytes are zeros. A part file is opened when it is first read, and its
length is compared with the manifest's; block checksums, which cover pack id, table and slot, tell
whether its content is the pack's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from tolpack.container.byte_source import ByteSource, Extent, FetchCounts, closed, truncated
from tolpack.container.crc import compare, crc32
from tolpack.container.header import Header, parse_header
from tolpack.container.header_checks import check_header
from tolpack.container.parts.check_pieces import check_pieces
from tolpack.container.parts.manifest import Manifest, PartFile
from tolpack.container.preamble import PREAMBLE_BYTES, Preamble, parse_preamble
from tolpack.errors import FormatError
from tolpack.runtime.pool import Pool

# Opens a part file; the source closes it.
OpenFile = Callable[[PartFile], ByteSource]
# Part files that are read at once, where a read waits for a network.
_FILES_AT_ONCE = 32


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
        self._starts = [segment.start for segment in self._segments]
        self._files: dict[int, ByteSource] = {}
        self._hints: dict[str, int] = {}
        self._pool = Pool(_FILES_AT_ONCE, "parts")
        super().__init__()

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`. Part files are read one after the other, or at once where a read waits
        for a network.
        """
        if self.is_closed:
            raise closed()
        wanted = [self._split(*extent) for extent in extents]
        by_file: dict[int, list[Extent]] = defaultdict(list)
        for pieces in wanted:
            for file, offset, length in pieces:
                by_file[file].append((offset, length))
        found = {file: iter(data) for file, data in self._read_files(by_file)}
        read = [[next(found[file]) for file, _, _ in pieces] for pieces in wanted]
        return [data[0] if len(data) == 1 else b"".join(data) for data in read]

    def file(self, number: int) -> ByteSource:
        """Return part file `number`, opened; this source closes it.

        Raises
        ------
        FormatError
            Codes ``truncated`` and ``trailing-bytes``: its length is not the manifest's.
        FileAccessError
            It is missing or cannot be read.
        """
        found = self._files.get(number)
        if found is not None:
            return found
        described = self.manifest.files[number]
        opened = self._open_file(described)
        try:
            _check_length(described, opened.size)
            opened.load()
            if "sequential" in self._hints:
                opened.expect_order(sequential=bool(self._hints["sequential"]))
            if "mapped" in self._hints:
                opened.limit_mapped(self._hints["mapped"])
        except BaseException:
            opened.close()
            raise
        with self._lock:
            first = self._files.setdefault(number, opened)
        if first is not opened:
            opened.close()
        return first

    def current_size(self) -> int:
        """See `ByteSource`; another size than at opening if a part file has another one."""
        for number, file in enumerate(self.manifest.files):
            found = self.file(number).current_size()
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
                self.file(file).advise(some)

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
        counts = [file.fetches for file in list(self._files.values())]
        names = [one.name for one in fields(FetchCounts)]
        return FetchCounts(*(sum(getattr(one, name) for one in counts) for name in names))

    @fetches.setter
    def fetches(self, _: FetchCounts) -> None:
        for file in list(self._files.values()):
            file.fetches = FetchCounts()

    def _read_files(
        self, by_file: dict[int, list[Extent]]
    ) -> list[tuple[int, Sequence[bytes | memoryview]]]:
        files = list(by_file.items())
        if self.is_remote and len(files) > 1:
            return self._pool.map(self._read_file, files)
        return [self._read_file(one) for one in files]

    def _read_file(
        self, wanted: tuple[int, list[Extent]]
    ) -> tuple[int, Sequence[bytes | memoryview]]:
        number, extents = wanted
        if number == _MANIFEST:
            return number, [self._start[offset : offset + length] for offset, length in extents]
        if number == _ZEROS:
            return number, [bytes(length) for _, length in extents]
        file = self.file(number)
        try:
            found = file.read_many(extents)
        except FormatError as error:
            place = f"{self.manifest.files[number].name}, {error.place}"
            raise FormatError(error.code, place, error.found, error.expected) from error
        self.is_cold = file.is_cold
        return number, found

    def _split(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return where an extent of the pack lies: file, offset and length of each of its parts."""
        if offset + length > self.size:
            raise truncated(offset, length, self.size)
        number, found = bisect_right(self._starts, offset) - 1, []
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


def _check_length(file: PartFile, size: int) -> None:
    if size != file.length_bytes:
        code = "truncated" if size < file.length_bytes else "trailing-bytes"
        raise FormatError(code, file.name, f"{size} bytes", f"{file.length_bytes} bytes")
