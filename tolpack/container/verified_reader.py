"""Opening a pack and fetching verified bytes from it.

`Container.open` makes at most two small reads whatever the size of the table: the first 4 KiB
(preamble and usually the whole header), then the rest of the header. Everything else is read when
it is asked for. Nothing is returned before its checksum was compared, unless the pack was opened
without checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tolpack.container.byte_source import ByteSource, Extent, FetchCounts
from tolpack.container.chunk_view import chunk_views
from tolpack.container.coders import Coders
from tolpack.container.crc import TABLE_PLACES, compare, crc32, low_bytes, place_checksum
from tolpack.container.file_kind import not_a_pack
from tolpack.container.header import Header, Section, Table, parse_header
from tolpack.container.header_checks import check_header
from tolpack.container.index import FRAMES_PER_INDEX_BLOCK, decode_index_block, index_block_extent
from tolpack.container.io_modes import open_byte_source
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, Preamble, parse_preamble
from tolpack.errors import ChecksumError, FormatError
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.storage.locations import Location

T = TypeVar("T")

# Bytes of an array that are read together.
_ARRAY_BYTES = 4 << 20
# Such reads of a remote array that are on their way at the same time.
_ARRAYS_AHEAD = 4
# Codes of errors that files of other kinds give at opening.
_OF_OTHER_FILES = ("bad-magic", "truncated", "manifest")


@dataclass(slots=True)
class ReadCounters:
    """Reads and bytes asked for, by purpose. ``array``: token map, bases, means."""

    open_reads: int = 0
    open_bytes: int = 0
    array_reads: int = 0
    array_bytes: int = 0
    index_reads: int = 0
    index_bytes: int = 0
    block_reads: int = 0
    block_bytes: int = 0


class Container(ForkSafe):
    """A verified view of one of a pack's tables.

    Use `Container.open`, which views the first one, and `of_table`; attributes ``preamble``,
    ``header``, ``number`` (the table's), ``table``, ``chunks`` (tuple of `ChunkView`) and
    ``counters``. Safe to use from several threads.
    """

    def __init__(
        self,
        source: ByteSource,
        preamble: Preamble,
        header: Header,
        counters: ReadCounters,
        number: int = 0,
        *,
        checksums: bool,
    ) -> None:
        self.source = source
        self.checksums = checksums
        self.preamble = preamble
        self.header = header
        self.counters = counters
        self.number = number
        self.table: Table = header.tables[number]
        self._first_place = number * TABLE_PLACES
        self.chunks = tuple(chunk_views(header, self.table))
        self._index_cache: dict[tuple[int, int], NDArray[np.int64]] = {}
        self.coders = Coders(header, self.array)
        super().__init__()

    @classmethod
    def open(
        cls,
        path: Location,
        io: str = "auto",
        *,
        checksums: bool = True,
        disk_cache: str | int | None = None,
    ) -> Container:
        """Open the pack at a path or URL; see `tolpack.Pack` for the settings.

        Raises
        ------
        FileAccessError, FormatError, ChecksumError, UnsupportedVersionError
        """
        try:
            return cls.read_from(open_byte_source(path, io, disk_cache), checksums=checksums)
        except FormatError as error:
            sentence = not_a_pack(path) if error.code in _OF_OTHER_FILES else None
            if sentence is None:
                raise
            place = f"{path}, {error.place}"
            raise FormatError(error.code, place, error.found, error.expected, sentence) from error

    @classmethod
    def read_from(cls, source: ByteSource, *, checksums: bool = True) -> Container:
        """Open the pack whose bytes `source` gives; the container closes it. Raises as `open`."""
        try:
            container = cls(source, *_read_header(source), checksums=checksums)
            source.load()
            source.fetches = FetchCounts()  # from now on
            return container
        except BaseException:
            source.close()
            raise

    def of_table(self, number: int) -> Container:
        """Return a view of table `number` of the same open file; it goes on counting by itself."""
        counters = replace(self.counters)
        return Container(
            self.source, self.preamble, self.header, counters, number, checksums=self.checksums
        )

    def chunk_name(self, number: int) -> str:
        """What messages call chunk `number`."""
        several = len(self.header.tables) > 1
        return f"chunk {number} of {self.table.name}" if several else f"chunk {number}"

    def digest(self) -> str:
        """Read preamble and header, and return their SHA-256, 64 digits: edits name their pack by
        it.
        """
        length = PREAMBLE_BYTES + self.preamble.header_length
        return hashlib.sha256(self.source.read(0, length)).hexdigest()

    @property
    def resident_bytes(self) -> int:
        """Bytes a reader keeps: preamble, header, and of this table token map, bases, means, frame
        indexes, compressed ids, models and classes.
        """
        numbers = set(self.header.sections_of(self.table))
        sections = [self.header.sections[number] for number in numbers]
        eager = [section.length_bytes for section in sections if section.kind != "blocks"]
        return PREAMBLE_BYTES + self.preamble.header_length + sum(eager)

    def array(self, number: int) -> NDArray[np.generic]:
        """Read array section `number` and return it checked, in its stored dtype: a copy.

        The rows of a coded basis come as bytes, uint8 (rank, bytes of a row), but for those that
        are entropy-coded: uint8 (n,), as they are stored.
        """
        section = self.header.sections[number]
        extents = [(section.offset_bytes + start, min(_ARRAY_BYTES, section.length_bytes - start))
                   for start in range(0, section.length_bytes, _ARRAY_BYTES)]  # fmt: skip
        return self._read_twice(extents, lambda: self._read_array(number, section))

    def _read_array(self, number: int, section: Section) -> NDArray[np.generic]:
        # A copy also of a mapped file: what was checked must not change afterwards.
        whole, found = np.empty(section.length_bytes, np.uint8), 0
        starts = range(0, len(whole), _ARRAY_BYTES)
        for n, start in enumerate(starts):
            part = whole[start : start + _ARRAY_BYTES]
            if self.source.is_remote:
                coming = starts[n : n + _ARRAYS_AHEAD]
                self.source.advise(
                    [(section.offset_bytes + s, min(_ARRAY_BYTES, len(whole) - s)) for s in coming]
                )
            data = self.source.read(section.offset_bytes + start, len(part))
            part[:] = np.frombuffer(data, np.uint8)
            found = crc32(part.data, found)
        self._count("array", section.length_bytes)
        if self.checksums:
            place = f"sections[{number}] ({section.kind})"
            compare("array-checksum", place, found, int(section.crc32 or 0))
        dtype = np.dtype(section.stored_dtype).newbyteorder("<")
        return whole.view(dtype).reshape(section.stored_shape)

    def block_extent(self, number: int, block: int) -> tuple[int, int]:
        """Offset in the file and length, in bytes, of block `block` of chunk `number`."""
        view = self.chunks[number]
        if not view.encoding.is_compressed:
            length = view.sizes.longest
            return view.offset_bytes + block * length, length
        bounds = self._index_block(number, block // FRAMES_PER_INDEX_BLOCK)
        start, end = bounds[block % FRAMES_PER_INDEX_BLOCK :][:2]
        return view.offset_bytes + int(start), int(end - start)

    def block_extents(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """`block_extent` of several blocks, each given by the numbers of its chunk and of itself
        there; index blocks that are not known yet are announced together.
        """
        if self.source.is_remote:
            self.source.advise(self._unknown_index_blocks(wanted))
        return [self.block_extent(number, block) for number, block in wanted]

    def block(self, number: int, block: int) -> memoryview:
        """Read block `block` of chunk `number`: `read_blocks` of one."""
        return self.read_blocks([(number, block)])[0]

    def read_blocks(self, wanted: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read blocks, each given by the numbers of its chunk and of itself there, and return their
        checked bytes, checksums removed.

        A raw block keeps its zero padding; any other is one frame, still compressed.

        Raises
        ------
        ChecksumError, FormatError, FileAccessError
            The first block that is damaged or cannot be read.
        """
        extents = self.block_extents(wanted)

        def read() -> list[memoryview]:
            found = [memoryview(data) for data in self.source.read_many(extents)]
            self._count("block", sum(length for _, length in extents), len(extents))
            if self.checksums:
                for (number, block), extent, data in zip(wanted, extents, found):
                    self._check_block_checksum(number, block, extent[0], data)
            ends = [-self.chunks[number].sizes.checksum_bytes for number, _ in wanted]
            return [data[:end] for data, end in zip(found, ends)]

        return self._read_twice(extents, read)

    def raw_rows(self, number: int, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Read rows of raw chunk `number` whose blocks hold one row each, as one array.

        Returns
        -------
        ndarray
            uint8 (rows, bytes of a block): the checked record first, then its padding and checksum.

        Raises
        ------
        ChecksumError, FormatError, FileAccessError
            As `read_blocks`.
        """
        offsets = [self.block_extent(number, row)[0] for row in rows]
        length = self.block_extent(number, 0)[1]

        def read() -> NDArray[np.uint8]:
            found = self.source.read_equal(offsets, length)
            self._count("block", length * len(offsets), len(offsets))
            if self.checksums:
                for row, offset, data in zip(rows, offsets, found):
                    self._check_block_checksum(number, row, offset, data.data)
            return found

        return self._read_twice([(offset, length) for offset in offsets], read)

    def _read_twice(self, extents: Sequence[Extent], read: Callable[[], T]) -> T:
        """Return what `read` does; once more if a checksum does not match, and what was read may
        come from a cache that keeps damaged bytes.
        """
        try:
            return read()
        except ChecksumError:
            if not self.source.forget(extents):
                raise
        return read()

    def _check_block_checksum(self, number: int, block: int, offset: int, data: memoryview) -> None:
        view = self.chunks[number]
        slot = view.first_slot + block * view.rows_per_block
        place, size = self._first_place + slot, view.sizes.checksum_bytes
        found = place_checksum(data[:-size], self.preamble.pack_id, place)
        if low_bytes(found, size) != data[-size:]:  # words only when needed
            where = f"block {block} (slots from {slot}, byte {offset})"
            stored = int.from_bytes(data[-size:], "little")
            compare("block-checksum", f"{self.chunk_name(number)}, {where}", found, stored)

    def read_index_block(self, number: int, block: int) -> NDArray[np.int64]:
        """Read block `block` of the index of chunk `number`, whether known already or not.

        Returns
        -------
        ndarray
            int64 (frames + 1,): where the frames begin and end in the chunk's section, in bytes.
        """
        view = self.chunks[number]
        slot = view.first_slot + block * FRAMES_PER_INDEX_BLOCK * view.rows_per_block
        extent = self._index_extent(number, block)

        def read() -> NDArray[np.int64]:
            data = bytes(self.source.read(*extent))
            self._count("index", len(data))
            return decode_index_block(
                data, self.preamble.pack_id, self._first_place + slot, view.length_bytes,
                view.sizes, check=self.checksums,
            )  # fmt: skip

        return self._read_twice([extent], read)

    def check_blocks(self, number: int, first: int, blocks: Sequence[memoryview]) -> None:
        """Compare the checksums of neighbouring blocks of chunk `number`, from block `first` on.

        Raises
        ------
        ChecksumError
            A block is damaged.
        """
        for block, data in enumerate(blocks, first):
            self._check_block_checksum(number, block, self.block_extent(number, block)[0], data)

    def check_header(self) -> None:
        """Read preamble and header again; raise if they are damaged or have changed."""
        preamble, header, _ = _read_header(self.source)
        if (preamble, header) != (self.preamble, self.header):
            raise FormatError("changed", "header", "another header", "the one at opening")
        size = self.source.current_size()
        if size != self.source.size:
            raise FormatError("changed", "file", f"{size} bytes", f"{self.source.size} bytes")

    def check_padding(self) -> None:
        """Raise `FormatError` unless every byte between sections is zero (the rest is summed)."""
        end = PREAMBLE_BYTES + self.preamble.header_length
        for number, section in enumerate(self.header.sections):
            gap = self.source.read(end, section.offset_bytes - end)
            if any(gap):
                raise FormatError("padding", f"bytes before sections[{number}]", "data", "zeros")
            end = section.end_bytes

    def close(self) -> None:
        """Close the file; running reads end first."""
        self.source.close()

    def _unknown_index_blocks(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        blocks = {
            (number, block // FRAMES_PER_INDEX_BLOCK)
            for number, block in wanted
            if self.chunks[number].encoding.is_compressed
        }
        return [self._index_extent(*one) for one in sorted(blocks - self._index_cache.keys())]

    def _index_extent(self, number: int, block: int) -> tuple[int, int]:
        view = self.chunks[number]
        section = self.header.sections[int(view.chunk.index or 0)]
        offset, length = index_block_extent(block, view.blocks, view.sizes.length_bytes)
        return section.offset_bytes + offset, length

    def _index_block(self, number: int, block: int) -> NDArray[np.int64]:
        key = (number, block)
        if key not in self._index_cache:
            self._index_cache[key] = self.read_index_block(number, block)
        return self._index_cache[key]

    def _count(self, purpose: str, length: int, count: int = 1) -> None:
        reads, size = f"{purpose}_reads", f"{purpose}_bytes"
        with self._lock:
            setattr(self.counters, reads, getattr(self.counters, reads) + count)
            setattr(self.counters, size, getattr(self.counters, size) + length)


def _read_header(source: ByteSource) -> tuple[Preamble, Header, ReadCounters]:
    first = bytes(source.read(0, min(source.size, SECTION_ALIGNMENT)))
    counters = ReadCounters(open_reads=1, open_bytes=len(first))
    preamble = parse_preamble(first, source.size)
    end = PREAMBLE_BYTES + preamble.header_length
    if end > source.size:
        raise FormatError("truncated", "header", f"{source.size} bytes", f"{end} bytes")
    data = first[PREAMBLE_BYTES:end]
    if end > len(first):
        data += bytes(source.read(len(first), end - len(first)))
        counters.open_reads += 1
        counters.open_bytes += end - len(first)
    compare("header-checksum", "header", crc32(data), preamble.header_crc32)
    header = parse_header(data)
    check_header(header, preamble)
    return preamble, header, counters
