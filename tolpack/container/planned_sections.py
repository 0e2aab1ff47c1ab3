"""Sections that are yet to be written, and the longest header that a file of them may have.

The header stands first in the file and is known last: offsets, lengths and checksums follow from
what is written. How many of them there are, and of how many digits, is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tolpack.codecs.encodings import Encoding
from tolpack.container.block_sizes import block_sizes, raw_block_bytes
from tolpack.container.header import Header, Section
from tolpack.container.index import index_bytes
from tolpack.container.preamble import (
    PREAMBLE_BYTES,
    SECTION_ALIGNMENT,
    SMALL_SECTION_ALIGNMENT,
    align,
)

_LARGEST_CRC32 = 2**32 - 1


def longest_header(header: Callable[[int], Header]) -> tuple[int, Header]:
    """Return where the sections of a header begin, and the header, given it for any beginning."""
    start = PREAMBLE_BYTES
    while True:
        found = header(start)
        begin = align(PREAMBLE_BYTES + len(found.to_json()), found.alignment)
        if begin <= start:
            return start, found
        start = begin


def placed_sections(sections: Iterable[Section], start: int, alignment: int) -> tuple[Section, ...]:
    """Lay out sections that are yet to be written from `start` on, at multiples of `alignment`;
    checksums of arrays have the most digits.
    """
    placed = []
    for section in sections:
        crc = None if section.shape is None else _LARGEST_CRC32
        placed.append(replace(section, offset_bytes=start, crc32=crc))
        start = align(placed[-1].end_bytes, alignment)
    return tuple(placed)


def planned_chunk(encoding: Encoding, record_bytes: int, rows: int) -> list[Section]:
    """Return the sections of a chunk that is yet to be written, its frames of the most bytes."""
    each = encoding.rows_per_block
    blocks = -(-rows // each)
    if not encoding.is_compressed:
        return [Section("blocks", 0, blocks * raw_block_bytes(record_bytes, each))]
    sizes = block_sizes(encoding, record_bytes)
    index = Section("index", 0, index_bytes(blocks, sizes.length_bytes))
    return [Section("blocks", 0, blocks * sizes.longest), index]


def section_alignment(encodings: Iterable[Encoding]) -> int:
    """Return where sections of a new pack of `encodings` begin: at multiples of so many bytes.

    Small packs are mostly entropy-coded, and these have no rows that pages could hold in whole.
    """
    coded = any(encoding.coder is not None for encoding in encodings)
    return SMALL_SECTION_ALIGNMENT if coded else SECTION_ALIGNMENT
