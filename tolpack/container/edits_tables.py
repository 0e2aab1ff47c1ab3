"""Tables of edits that are to be written: how their rows are stored, and where in a file.

Rows are stored whole, as numbers: neither a basis nor a neighbour can change one. They have the
order of their token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tolpack.codecs.encodings import Encoding, Part, field_bytes
from tolpack.codecs.record import record_layout
from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.blocks import encode_blocks, stored_bytes
from tolpack.container.edits_header import Edits
from tolpack.container.header import Chunk, Section, Table
from tolpack.container.planned_sections import planned_chunk
from tolpack.container.preamble import MAX_NAME, MAX_ROWS_PER_BLOCK
from tolpack.container.writer import PackWriter
from tolpack.runtime.array_types import Bytes, Floats, Ints

# Gives rows ``start … stop-1`` of a table of edits: float32 (rows, values of all kept fields).
RowRange = Callable[[int, int], Floats]
# Bytes of a block, about; of the sample of which both frames are tried; of rows encoded together.
_BLOCK_BYTES, _SAMPLE_BYTES, _PIECE_BYTES = 1 << 14, 8 << 20, 8 << 20


@dataclass(frozen=True, slots=True)
class NewEdits:
    """A table of edits that is to be written.

    Parameters
    ----------
    name : str
        Its name.
    edited : Table
        The table whose rows it replaces.
    base : str or None
        Digest of the pack of that table; ``None``: they are in one file.
    token_ids : ndarray
        int64 (rows,), strictly ascending.
    rows : callable
        Gives its rows.
    encoding : Encoding
        How they are stored; see `edits_encoding`.
    """

    name: str
    edited: Table
    base: str | None
    token_ids: Ints
    rows: RowRange
    encoding: Encoding

    def planned_sections(self) -> list[Section]:
        """Return its sections, that of the token ids first, with the most bytes they may have."""
        count = len(self.token_ids)
        ids = Section("token_ids", 0, 4 * count, 0, "uint32", (count,))
        return [ids, *planned_chunk(self.encoding, self._record_bytes, count)]

    def table(self, token_ids: int, blocks: int, index: int | None, encoding: int) -> Table:
        """Return what a header says of it, given the numbers of its sections and encoding."""
        edits = Edits(self.edited.name, self.edited.rows, token_ids, self.base)
        fields = tuple(replace(f, rank=None, basis=None, mean=None) for f in self.edited.fields)
        chunk = Chunk(len(self.token_ids), encoding, blocks, index)
        return Table(self.name, len(self.token_ids), fields, (chunk,), edits=edits)

    def write(self, writer: PackWriter, number: int, encoding: int) -> Table:
        """Write its sections, as table `number` of the file, and return what a header says of it.

        Raises
        ------
        ConfigError, FileAccessError
            As of `PackWriter`.
        """
        ids, _ = writer.add_array("token_ids", lambda: self.token_ids.astype(np.uint32))
        blocks = partial(
            encode_blocks, self._records(), self.encoding, 0, writer.pack_id, table=number
        )
        section, index = writer.add_chunk(self.encoding, 0, blocks, number)
        return self.table(ids, section, index, encoding)

    @property
    def _record_bytes(self) -> int:
        return sum(map(field_bytes, self.encoding.fields))

    def _records(self) -> Iterator[Bytes]:
        piece = max(1, _PIECE_BYTES // self._record_bytes)
        for start in range(0, len(self.token_ids), piece):
            stop = min(start + piece, len(self.token_ids))
            yield encoded_records(self.rows(start, stop), self.encoding)


def encoded_records(rows: Floats, encoding: Encoding) -> Bytes:
    """Return the records of `rows`, float32 (n, values of all kept fields)."""
    layout = record_layout(encoding.fields)
    records = np.empty((len(rows), layout.record_bytes), np.uint8)
    begin = 0
    for kept, values in enumerate(layout.stored_values):
        layout.encode(records, kept, rows[:, begin : begin + values])
        begin += values
    return records


def edits_encoding(edited: Table, codecs: Sequence[str], count: int, rows: RowRange) -> Encoding:
    """Choose how the rows of a table of edits are stored: as they are, or compressed, whichever is
    smaller.

    Parameters
    ----------
    edited : Table
        The table that is edited.
    codecs : sequence of str
        ``"f32"``, ``"f16"`` or ``"bf16"`` for each kept field.
    count : int
        Number of rows.
    rows : callable
        Gives them: the first ones are tried.
    """
    fields = tuple((Part(c, f.width),) for c, f in zip(codecs, edited.kept_fields, strict=True))
    record = sum(map(field_bytes, fields))
    each = min(max(1, _BLOCK_BYTES // record), MAX_ROWS_PER_BLOCK, count)
    raw, framed = (Encoding(frame, each, fields) for frame in ("raw", "zstd-planes"))
    some = encoded_records(rows(0, min(count, max(each, _SAMPLE_BYTES // record))), raw)
    blocks = -(-len(some) // each)
    smaller = stored_bytes(some, framed) < blocks * raw_block_bytes(record, each)
    return framed if smaller else raw


def edits_name(table: str, taken: set[str]) -> str:
    """Return a name for the edits of `table` in one file with tables called `taken`."""
    number, suffix = 1, " edits"
    while (name := table[: MAX_NAME - len(suffix)] + suffix) in taken:
        number += 1
        suffix = f" edits {number}"
    return name
