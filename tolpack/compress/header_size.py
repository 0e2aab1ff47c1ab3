"""How long a pack's header may become, before its sections are written.

The header stands first in the file and is known last: offsets, lengths and checksums follow from
what is written. How many of them there are, and of how many digits, is known beforehand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tolpack.codecs.encodings import CoderSettings, Encoding
from tolpack.compress.chunks import ChunkSpan
from tolpack.compress.pack_provenance import longest_text
from tolpack.container.header import Chunk, Field, Header, Section, Table
from tolpack.container.planned_sections import (
    longest_header,
    placed_sections,
    planned_chunk,
    section_alignment,
)
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align
from tolpack.container.provenance import Provenance
from tolpack.version import PRODUCER

# Characters of a name that the estimate counts with its field.
_SHORT_NAME = 10


@dataclass(frozen=True, slots=True)
class PlannedHeader:
    """Everything that a header will say, but for numbers that follow from what is written.

    ``table`` refers to sections by any number; ``numbers`` are those of each chunk's encoding;
    ``provenance`` is kept in the file.
    """

    table: Table
    chunks: Sequence[ChunkSpan]
    encodings: Sequence[Encoding]
    numbers: Sequence[int]
    arrays: Sequence[Section]
    provenance: Provenance | None = None

    @property
    def room_bytes(self) -> int:
        """Bytes that its JSON takes at most."""
        return len(longest_header(self._longest)[1].to_json())

    def file_bytes(self, sections: Sequence[float]) -> int:
        """Bytes of its file, given those of all `sections`."""
        return file_bytes(self.room_bytes, sections, section_alignment(self.encodings))

    def _longest(self, start: int) -> Header:
        """Return a header of the most digits; sections begin at `start`."""
        table = self.table
        sections = list(self.arrays)
        for plan, number in zip(self.chunks, self.numbers):
            encoding = self.encodings[number]
            sections += planned_chunk(encoding, table.record_bytes(encoding), plan.rows)
        alignment = section_alignment(self.encodings)
        placed = placed_sections(sections, start, alignment)
        last = len(placed) - 1
        table = replace(
            table,
            fields=tuple(_referring_to(field, last) for field in table.fields),
            chunks=tuple(
                Chunk(p.rows, n, last, last if self.encodings[n].is_compressed else None)
                for p, n in zip(self.chunks, self.numbers)
            ),
            token_map=None if table.token_map is None else last,
            ngrams=None if table.ngrams is None else replace(table.ngrams, id_map=last),
        )
        made_from = None if self.provenance is None else longest_text(self.provenance)
        return Header(
            (table,), tuple(self.encodings), placed, PRODUCER, alignment=alignment,
            provenance=made_from,
        )  # fmt: skip


def planned_basis(shape: tuple[int, int], coder: CoderSettings, size: int) -> Section:
    """Return an entropy-coded basis that is yet to be written; `shape`: rank and width."""
    group_size = shape[1] + shape[1] % 2
    return Section("coded_basis", 0, size, 0, None, shape, "int8", group_size, coder)


def _referring_to(field: Field, number: int) -> Field:
    basis = None if field.basis is None else number
    return replace(field, basis=basis, mean=None if field.mean is None else number)


def estimate_header_room(
    layers: int, kept: int, chunks: int, *, has_basis: bool, table: Table | None = None,
    provenance: int = 0,
) -> int:  # fmt: skip
    """Bytes to keep for the header's JSON: an upper bound that fills whole pages with the preamble.

    Every chunk may have an index, and with `has_basis` every kept layer a basis, a mean and two
    parts; there are at most two encodings. With `table`, its names and its n-gram hash are counted,
    too; `provenance`: bytes of that.
    """
    arrays = (2 * kept if has_basis else 0) + 2
    parts = 2 * kept if has_basis else kept
    fields = (112 if has_basis else 84) * layers
    sections = 128 * arrays + 76 * 2 * chunks  # blocks and indexes have neither checksum nor shape
    estimate = provenance + 272 + fields + 72 * chunks + sections + 2 * (64 + 60 * parts)
    if table is not None:
        names = (len(table.name), *(len(field.name) for field in table.fields))
        ngrams = {} if table.ngrams is None else table.ngrams.to_json()
        estimate += sum(max(0, n - _SHORT_NAME) for n in names) + len(json.dumps(ngrams))
    return align(PREAMBLE_BYTES + estimate, SECTION_ALIGNMENT) - PREAMBLE_BYTES


def file_bytes(
    header_bytes: int, sections: Sequence[float], alignment: int = SECTION_ALIGNMENT
) -> int:
    """Bytes of a file: preamble, header, and `sections` of given bytes, each but the last one
    filled up to a multiple of `alignment`.
    """
    sizes = [PREAMBLE_BYTES + header_bytes, *(math.ceil(size) for size in sections)]
    return sum(align(size, alignment) for size in sizes[:-1]) + sizes[-1]
