"""The pack that plans will make: its header as far as it is known, held against the format's rules.

What a reader would refuse is so refused before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tolpack.compress.header_size import planned_basis
from tolpack.compress.plan import PRODUCER, PackPlan, Plan, PlannedArray, pack_key, planned_array
from tolpack.container.block_sizes import longest_frame, raw_block_bytes
from tolpack.container.header import Chunk, Header, Section, parse_header
from tolpack.container.header_checks import check_header
from tolpack.container.index import index_bytes
from tolpack.container.preamble import (
    PREAMBLE_BYTES,
    SECTION_ALIGNMENT,
    Preamble,
    align,
)
from tolpack.container.writer import check_header_room
from tolpack.errors import ConfigError, FormatError

_LARGEST_CRC32 = 2**32 - 1


def plan_pack(plans: Sequence[Plan]) -> PackPlan:
    """Make one pack of the plans of its tables.

    Raises
    ------
    ConfigError
        The format has no such pack: a name, a width or a number is beyond its limits.
    """
    key = pack_key([plan.key for plan in plans])
    plans = [replace(plan, key=key, number=number) for number, plan in enumerate(plans)]
    start, header = _longest_header(plans)
    if len(plans) == 1:
        room = plans[0].header_room
    else:  # offsets and numbers of sections have more digits than in packs of one table each
        room = start - PREAMBLE_BYTES
        check_header_room(room)
    _check(header, start)
    return PackPlan(tuple(plans), room)


def _check(header: Header, start: int) -> None:
    end = header.sections[-1].end_bytes
    preamble = Preamble(start - PREAMBLE_BYTES, end, header.required_features(), 0, 0)
    try:
        check_header(parse_header(header.to_json()), preamble)
    except FormatError as error:
        raise ConfigError(f"the format has no such pack: {error}") from error


def _longest_header(plans: Sequence[Plan]) -> tuple[int, Header]:
    """Return where sections begin, and a header of the most digits."""
    start = PREAMBLE_BYTES
    while True:
        header = _header(plans, start)
        begin = align(PREAMBLE_BYTES + len(header.to_json()), SECTION_ALIGNMENT)
        if begin <= start:
            return start, header
        start = begin


def _header(plans: Sequence[Plan], start: int) -> Header:
    tables, encodings, sections = [], 0, list[Section]()
    for plan in plans:
        first = len(sections)
        sections += [_array_section(array) for array in plan.arrays]
        chunks = []
        for chunk in plan.chunks:
            made = _chunk_sections(plan, chunk.encoding, chunk.rows)
            numbers = range(len(sections), len(sections) + len(made))
            index = numbers[1] if len(made) > 1 else None
            chunks.append(Chunk(chunk.rows, chunk.encoding, numbers[0], index))
            sections += made
        tables.append(plan.placed_table(first, encodings, chunks))
        encodings += len(plan.encodings)
    placed = []
    for section in sections:
        placed.append(replace(section, offset_bytes=start))
        start = align(placed[-1].end_bytes, SECTION_ALIGNMENT)
    known = tuple(encoding for plan in plans for encoding in plan.encodings)
    return Header(tuple(tables), known, tuple(placed), PRODUCER)


def _array_section(array: PlannedArray) -> Section:
    if array.part is not None:
        section = planned_basis(array.values.shape[0], array.part)
    else:
        dtype, shape = array.values.dtype, array.values.shape
        section = planned_array(array.kind, str(dtype), shape, dtype.itemsize)
    return replace(section, crc32=_LARGEST_CRC32)


def _chunk_sections(plan: Plan, number: int, rows: int) -> list[Section]:
    encoding = plan.encodings[number]
    record, blocks = plan.table.record_bytes(encoding), math.ceil(rows / encoding.rows_per_block)
    if not encoding.is_compressed:
        block = raw_block_bytes(record, encoding.rows_per_block)
        return [Section("blocks", 0, blocks * block)]
    longest = longest_frame(encoding.frame, record * encoding.rows_per_block)
    return [Section("blocks", 0, blocks * longest), Section("index", 0, index_bytes(blocks))]
