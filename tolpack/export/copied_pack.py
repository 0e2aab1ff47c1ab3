"""A pack's own tables in a new file: the same arrays and rows, under another pack id.

Checksums of blocks cover the pack id, so they are computed again; payloads stay as they are. Only
old rows of edited tokens are blanked where no other row is touched by it: where records are not
compressed, and where a block has one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tolpack.codecs.encodings import CoderSettings, Encoding
from tolpack.codecs.frames import ZSTD_FRAMES
from tolpack.container.chunk_view import ChunkView
from tolpack.container.crc import TABLE_PLACES, compare, crc32, low_bytes, place_checksum
from tolpack.container.header import Field, Header, Section, Table
from tolpack.container.planned_sections import planned_chunk
from tolpack.container.verified_reader import Container
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Buffer, Ints

# Bytes that are copied together.
_COPY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class CopiedPack:
    """The tables of a pack that are not edits, renumbered for a new file.

    ``numbers``: of its sections there, by their numbers in the pack, in the order in which they are
    written; ``encodings`` the same of encodings.
    """

    header: Header
    numbers: Mapping[int, int]
    encodings: Mapping[int, int]

    @classmethod
    def of(cls, header: Header) -> CopiedPack:
        """Number what a pack's tables refer to: the index of a chunk follows its blocks."""
        tables = header.unedited_tables
        index = {chunk.blocks: chunk.index for table in tables for chunk in table.chunks}
        used = {number for table in tables for number in header.sections_of(table)}
        order: list[int] = []
        for number, section in enumerate(header.sections):
            if number in used and section.kind != "index":
                order.append(number)
                following = index.get(number)
                order += [] if following is None else [following]
        kept = sorted({number for table in tables for number in table.encodings})
        return cls(
            header,
            {old: new for new, old in enumerate(order)},
            {old: new for new, old in enumerate(kept)},
        )

    @property
    def tables(self) -> list[Table]:
        """The tables as the new header says them."""
        return [self._table(table) for table in self.header.unedited_tables]

    @property
    def placed_encodings(self) -> list[Encoding]:
        """The encodings as the new header says them."""
        every = (self.header.encodings[number] for number in self.encodings)
        return [replace(one, coder=self._coder(one.coder)) for one in every]

    def placed(self, section: Section) -> Section:
        """Return a section that refers to others by their new numbers."""
        return replace(section, coder=self._coder(section.coder))

    def planned_sections(self) -> list[Section]:
        """Return its sections with the most bytes that they may have, not renumbered yet."""
        chunks = {chunk.blocks: chunk for t in self.header.unedited_tables for chunk in t.chunks}
        found: list[Section] = []
        for number in self.numbers:
            section = self.header.sections[number]
            if section.kind == "blocks":
                encoding = self.header.encodings[chunks[number].encoding]
                record_bytes = encoding.record().record_bytes
                found += planned_chunk(encoding, record_bytes, chunks[number].rows)
            elif section.kind != "index":
                found.append(section)
        return found

    def _coder(self, coder: CoderSettings | None) -> CoderSettings | None:
        if coder is None:
            return None
        numbers = self.numbers
        return replace(coder, models=numbers[coder.models], classes=numbers[coder.classes])

    def _table(self, table: Table) -> Table:
        chunks = tuple(
            replace(
                chunk, encoding=self.encodings[chunk.encoding], blocks=self.numbers[chunk.blocks],
                index=self._number(chunk.index),
            )
            for chunk in table.chunks
        )  # fmt: skip
        ngrams = table.ngrams
        if ngrams is not None:
            ngrams = replace(ngrams, id_map=self._number(ngrams.id_map))
        return replace(
            table, fields=tuple(map(self._field, table.fields)), chunks=chunks,
            token_map=self._number(table.token_map), ngrams=ngrams,
        )  # fmt: skip

    def _field(self, field: Field) -> Field:
        return replace(field, basis=self._number(field.basis), mean=self._number(field.mean))

    def _number(self, number: int | None) -> int | None:
        return None if number is None else self.numbers[number]


def copy_sections(
    copied: CopiedPack,
    views: Sequence[Container],
    edited: Sequence[Ints],
    writer: PackWriter,
    done: Callable[[int], object],
) -> int:
    """Write the sections of a pack's tables in their order.

    Parameters
    ----------
    copied : CopiedPack
        What is written.
    views : sequence of Container
        A view of each table that is not edits.
    edited : sequence of ndarray
        For each of them the slots of edited tokens, int64 (n,), ascending.
    writer : PackWriter
        Nothing has been added to it yet.
    done : callable
        Called with the number of bytes copied since the last call.

    Returns
    -------
    int
        Old rows of edited tokens that are still in the file.

    Raises
    ------
    ChecksumError, FormatError, FileAccessError
        The pack is damaged, cannot be read, or the new file cannot be written.
    """
    chunks = {
        chunk.blocks: (table, number)
        for table, view in enumerate(views)
        for number, chunk in enumerate(view.table.chunks)
    }
    left = 0
    for number in copied.numbers:
        section = copied.header.sections[number]
        if section.kind == "blocks":
            table, chunk = chunks[number]
            copy = _ChunkCopy(views[table], chunk, table, edited[table])
            view = copy.view
            blocks = partial(copy.blocks, writer.pack_id, done)
            writer.add_chunk(view.encoding, view.first_slot, blocks, table)
            left += copy.left
        elif section.kind != "index":
            writer.add_stored_array(section, _array_bytes(views[0], number, done))
    return left


def _array_bytes(
    container: Container, number: int, done: Callable[[int], object]
) -> Iterator[Buffer]:
    """Yield the bytes of an array; raise before its end if they are damaged."""
    section, found = container.header.sections[number], 0
    for start in range(0, section.length_bytes, _COPY_BYTES):
        size = min(_COPY_BYTES, section.length_bytes - start)
        data = container.source.read(section.offset_bytes + start, size)
        found = crc32(data, found)
        yield data
        done(size)
    compare("array-checksum", f"sections[{number}]", found, int(section.crc32 or 0))


class _ChunkCopy:
    """The blocks of a chunk under another pack id; ``left``: old rows of edited tokens in them."""

    def __init__(self, container: Container, number: int, table: int, edited: Ints) -> None:
        self._container, self._number, self._table = container, number, table
        self.view: ChunkView = container.chunks[number]
        rows = edited - self.view.first_slot
        rows = rows[(rows >= 0) & (rows < self.view.chunk.rows)]
        self._rows_of: dict[int, list[int]] = {}
        for block, row in zip(*(one.tolist() for one in np.divmod(rows, self.view.rows_per_block))):
            self._rows_of.setdefault(block, []).append(row)
        self._blank = self._blank_payload() if self._rows_of else None
        self.left = 0 if self._can_blank else len(rows)

    @property
    def _can_blank(self) -> bool:
        return not self.view.encoding.is_compressed or self._blank is not None

    def blocks(self, pack_id: int, done: Callable[[int], object]) -> Iterator[Buffer]:
        """Yield the blocks."""
        view = self.view
        place = view.first_slot + self._table * TABLE_PLACES
        window = max(1, _COPY_BYTES * view.blocks // view.length_bytes)
        for start in range(0, view.blocks, window):
            numbers = range(start, min(start + window, view.blocks))
            payloads = self._container.read_blocks([(self._number, block) for block in numbers])
            for block, payload in zip(numbers, payloads):
                new = self._new_payload(block, payload)
                checksum = place_checksum(new, pack_id, place + block * view.rows_per_block)
                yield b"".join((new, low_bytes(checksum, view.sizes.checksum_bytes)))
            done(sum(map(len, payloads)))

    def _new_payload(self, block: int, payload: memoryview) -> Buffer:
        """Return a block's payload without old rows of edited tokens, where that can be."""
        rows = self._rows_of.get(block)
        if rows is None or not self._can_blank:
            return payload
        if self._blank is not None:
            return self._blank
        changed, size = bytearray(payload), self.view.record_bytes
        for row in rows:
            changed[row * size : (row + 1) * size] = bytes(size)
        return bytes(changed)

    def _blank_payload(self) -> bytes | None:
        """Return the payload of one row of zeros in frames of one row each; else ``None``."""
        view = self.view
        if not view.encoding.is_compressed or view.rows_per_block != 1:
            return None
        zeros = np.zeros((1, view.record_bytes), np.uint8)
        if view.encoding.coder is None:
            return ZSTD_FRAMES[view.encoding.frame].compress(view.record, zeros.tobytes(), 1)[0]
        coder = self._container.coders.of_encoding(view.chunk.encoding)
        try:
            return coder.encode_records(zeros, 1)[0]
        except ConfigError:  # its models have no zeros
            return None
