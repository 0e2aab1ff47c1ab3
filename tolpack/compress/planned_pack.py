"""The pack that plans will make: its header as far as it is known, held against the format's rules.

What a reader would refuse is so refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tolpack.codecs.encodings import Encoding
from tolpack.compress.header_size import planned_basis
from tolpack.compress.pack_provenance import longest_text
from tolpack.compress.plan import (
    PackPlan,
    Plan,
    PlannedArray,
    pack_key,
    placed_coder,
    planned_array,
)
from tolpack.container.header import Chunk, Header, Section, parse_header
from tolpack.container.header_checks import check_header
from tolpack.container.header_features import required_features
from tolpack.container.planned_sections import (
    longest_header,
    placed_sections,
    planned_chunk,
    section_alignment,
)
from tolpack.container.preamble import PREAMBLE_BYTES, Preamble
from tolpack.container.writer import check_header_room
from tolpack.errors import ConfigError, FormatError
from tolpack.version import PRODUCER


def plan_pack(plans: Sequence[Plan]) -> PackPlan:
    """Make one pack of the plans of its tables.

    Raises
    ------
    ConfigError
        The format has no such pack: a name, a width or a number is beyond its limits.
    """
    key = pack_key([plan.key for plan in plans])
    plans = [replace(plan, key=key, number=number) for number, plan in enumerate(plans)]
    start, header = longest_header(partial(_header, plans))
    if len(plans) == 1:
        room = plans[0].header_room
    else:  # offsets and numbers of sections have more digits than in packs of one table each
        room = start - PREAMBLE_BYTES
        check_header_room(room)
    _check(header, start)
    return PackPlan(tuple(plans), room)


def planned_header(plan: PackPlan) -> Header:
    """Return the header of a plan's pack, but for where sections begin and what they take."""
    return longest_header(partial(_header, plan.tables))[1]


def _check(header: Header, start: int) -> None:
    end = header.sections[-1].end_bytes
    preamble = Preamble(start - PREAMBLE_BYTES, end, required_features(header), 0, 0)
    try:
        check_header(parse_header(header.to_json()), preamble)
    except FormatError as error:
        raise ConfigError(f"the format has no such pack: {error}") from error


def _header(plans: Sequence[Plan], start: int) -> Header:
    tables, encodings, sections = [], list[Encoding](), list[Section]()
    for plan in plans:
        first = len(sections)
        sections += [_array_section(array, first) for array in plan.arrays]
        chunks = []
        for chunk in plan.chunks:
            encoding = plan.encodings[chunk.encoding]
            made = planned_chunk(encoding, plan.table.record_bytes(encoding), chunk.rows)
            numbers = range(len(sections), len(sections) + len(made))
            index = numbers[1] if len(made) > 1 else None
            chunks.append(Chunk(chunk.rows, chunk.encoding, numbers[0], index))
            sections += made
        tables.append(plan.placed_table(first, len(encodings), chunks))
        encodings += plan.placed_encodings(first)
    alignment = section_alignment(encodings)
    placed = placed_sections(sections, start, alignment)
    made_from = plans[0].provenance
    return Header(
        tuple(tables), tuple(encodings), placed, PRODUCER, alignment=alignment,
        provenance=None if made_from is None else longest_text(made_from),
    )  # fmt: skip


def _array_section(array: PlannedArray, first_section: int) -> Section:
    coder = placed_coder(array.coder, first_section)
    if coder is not None:
        return planned_basis(array.shape, coder, array.values.nbytes)
    dtype, shape = array.values.dtype, array.values.shape
    return planned_array(array.kind, str(dtype), shape, dtype.itemsize)
