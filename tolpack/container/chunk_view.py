"""A chunk with what follows from the header about it: where it stands, and how it is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

from tolpack.codecs.byte_planes import RecordWords
from tolpack.codecs.encodings import Encoding
from tolpack.container.block_sizes import BlockSizes, block_sizes
from tolpack.container.header import Chunk, Header, Table
from tolpack.container.index import length_bytes_of


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A chunk with what follows from the header about it."""

    chunk: Chunk
    encoding: Encoding
    first_slot: int
    record: RecordWords
    sizes: BlockSizes
    offset_bytes: int
    length_bytes: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a row."""
        return self.record.record_bytes

    @property
    def rows_per_block(self) -> int:
        """Rows that are read and checked together."""
        return self.encoding.rows_per_block

    @property
    def is_plain(self) -> bool:
        """Whether a block is one record as it is, not compressed."""
        return self.rows_per_block == 1 and not self.encoding.is_compressed

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.chunk.rows // self.rows_per_block)

    def block_rows(self, block: int) -> int:
        """Rows in block `block`; the last one may hold fewer."""
        return min(self.rows_per_block, self.chunk.rows - block * self.rows_per_block)


def chunk_views(header: Header, table: Table) -> list[ChunkView]:
    """Return the chunks of a table of `header`, in the order of its slots."""
    starts = accumulate((chunk.rows for chunk in table.chunks), initial=0)
    records = {number: header.encodings[number].record() for number in table.encodings}
    sizes = {
        number: block_sizes(header.encodings[number], record.record_bytes)
        for number, record in records.items()
    }
    views = []
    for chunk, first_slot in zip(table.chunks, starts):
        encoding, section = header.encodings[chunk.encoding], header.sections[chunk.blocks]
        own = sizes[chunk.encoding]
        if chunk.index is not None:
            blocks = -(-chunk.rows // encoding.rows_per_block)
            index = header.sections[chunk.index]
            own = replace(own, length_bytes=length_bytes_of(index.length_bytes, blocks))
        extent = (section.offset_bytes, section.length_bytes)
        views.append(ChunkView(chunk, encoding, first_slot, records[chunk.encoding], own, *extent))
    return views
