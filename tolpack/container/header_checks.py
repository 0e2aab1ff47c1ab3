"""Holding a header's parts against each other and against the file (SPEC §5, §10).

All arithmetic is on Python integers, which do not wrap. After `check_header` every extent lies
inside the file, no two overlap, nothing is left over, and every size that a reader allocates
follows from numbers that were checked.
"""

from __future__ import annotations

import math
from collections import Counter

from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.header import ARRAY_DTYPES, Chunk, Field, Header, Table
from tolpack.container.index import index_bytes
from tolpack.container.ngram_header import NGrams, check_heads
from tolpack.container.preamble import (
    FEATURES,
    MAX_ARRAY_BYTES,
    MAX_BLOCK_BYTES,
    MAX_ROW_VALUES,
    PREAMBLE_BYTES,
    SECTION_ALIGNMENT,
    Preamble,
    align,
)
from tolpack.errors import FormatError

_ELEMENT_BYTES = {**ARRAY_DTYPES, "uint8": 1}


def check_header(header: Header, preamble: Preamble) -> None:
    """Raise `FormatError` unless the header is consistent with itself and with the file."""
    _check_extents(header, preamble)
    _check_unique("table-name", "tables", [table.name for table in header.tables])
    other_layers = bool(preamble.required_features >> FEATURES["other_layers"] & 1)
    for number, table in enumerate(header.tables):
        place = f"tables[{number}]"
        _check_fields(header, table, place, other_layers=other_layers)
        _check_chunks(header, table, place)
        if table.token_map is not None:
            _check_array(
                header, table.token_map, "token_map", "uint32", (table.rows,), f"{place}.token_map"
            )
        if table.ngrams is not None:
            _check_ngrams(header, table.ngrams, table.rows, f"{place}.ngrams")
    _check_references(header)
    _expect("feature-mismatch", "preamble.required_features", preamble.required_features,
            header.required_features())  # fmt: skip


def _check_extents(header: Header, preamble: Preamble) -> None:
    end = PREAMBLE_BYTES + preamble.header_length
    for number, section in enumerate(header.sections):
        place = f"sections[{number}]"
        expected = align(end, SECTION_ALIGNMENT)
        _expect("section-offset", f"{place}.offset_bytes", section.offset_bytes, expected)
        end = section.end_bytes
        if end > preamble.file_length:
            raise FormatError(
                "extent-past-end", place, f"end {end}", f"at most {preamble.file_length}"
            )
        if section.shape is None:
            continue
        size = math.prod(section.stored_shape) * _ELEMENT_BYTES[section.stored_dtype]
        _expect("array-length", f"{place}.length_bytes", section.length_bytes, size)
        if size > MAX_ARRAY_BYTES:
            raise FormatError("array-length", place, size, f"at most {MAX_ARRAY_BYTES} bytes")
    _expect("trailing-bytes", "file", preamble.file_length, end)


def _check_fields(header: Header, table: Table, place: str, *, other_layers: bool) -> None:
    if not table.kept_fields:
        raise FormatError("no-data", f"{place}.fields", "every field dropped", "one kept field")
    values = sum(field.width for field in table.fields)
    if values > MAX_ROW_VALUES:
        raise FormatError("row-size", f"{place}.fields", values, f"at most {MAX_ROW_VALUES} values")
    _check_unique("field-name", f"{place}.fields", [field.name for field in table.fields])
    for number, field in enumerate(table.fields):
        if not other_layers:
            _expect("field-layer", f"{place}.fields[{number}].layer", field.layer, number)
        _check_field(header, table, field, f"{place}.fields[{number}]")


def _check_unique(code: str, place: str, names: list[str]) -> None:
    twice = [name for name, uses in Counter(names).items() if uses > 1]
    if twice:
        raise FormatError(code, place, f"{twice[0]!r} twice", "unique names")


def _check_field(header: Header, table: Table, field: Field, place: str) -> None:
    if field.dropped and not field.rank is field.basis is field.mean is None:
        raise FormatError("dropped-has-data", place, "rank, basis or mean", "nothing stored")
    if (field.rank is None) != (field.basis is None):
        raise FormatError("rank-without-basis", place, "only one of rank and basis", "both or none")
    if field.rank is not None and field.basis is not None:
        if field.rank > min(table.rows, field.width):
            raise FormatError(
                "rank", f"{place}.rank", field.rank, f"at most {min(table.rows, field.width)}"
            )
        _check_basis(header, field.basis, (field.rank, field.width), f"{place}.basis")
    if field.mean is not None:
        _check_array(header, field.mean, "mean", "float32", (field.width,), f"{place}.mean")


def _check_basis(header: Header, number: int, shape: tuple[int, int], place: str) -> None:
    section = header.sections[number]
    if section.kind == "coded_basis":
        _expect("array-shape", place, section.shape, shape)
    else:
        _check_array(header, number, "basis", "float16", shape, place)


def _check_chunks(header: Header, table: Table, place: str) -> None:
    _expect("row-count", f"{place}.chunks", sum(c.rows for c in table.chunks), table.rows)
    used, count = table.encodings, len(header.encodings)
    if max(used) >= count:
        raise FormatError("reference", f"{place}.chunks", max(used), f"encodings below {count}")
    records = {number: _check_encoding(header, table, number) for number in sorted(used)}
    for number, chunk in enumerate(table.chunks):
        _check_chunk(header, chunk, records[chunk.encoding], f"{place}.chunks[{number}]")


def _check_encoding(header: Header, table: Table, number: int) -> int:
    """Hold an encoding against the table's fields and return its record's bytes."""
    encoding, place = header.encodings[number], f"encodings[{number}]"
    stored = [sum(part.values for part in parts) for parts in encoding.fields]
    kept = [field.stored_values for field in table.kept_fields]
    _expect("encoding-fields", f"{place}.fields", stored, kept)
    record = table.record_bytes(encoding)
    if record * encoding.rows_per_block > MAX_BLOCK_BYTES:
        raise FormatError(
            "block-size", place, record * encoding.rows_per_block, f"at most {MAX_BLOCK_BYTES}"
        )
    return record


def _check_chunk(header: Header, chunk: Chunk, record: int, place: str) -> None:
    encoding = header.encodings[chunk.encoding]
    blocks = -(-chunk.rows // encoding.rows_per_block)
    section = header.sections[chunk.blocks]
    _expect("section-kind", f"{place}.blocks", section.kind, "blocks")
    if not encoding.is_compressed:
        size = blocks * raw_block_bytes(record, encoding.rows_per_block)
        _expect("chunk-length", f"{place}.blocks", section.length_bytes, size)
        _expect("raw-with-index", f"{place}.index", chunk.index, None)
        return
    if chunk.index is None:
        raise FormatError("frames-without-index", place, "no index", "an index section")
    index = header.sections[chunk.index]
    _expect("section-kind", f"{place}.index", index.kind, "index")
    _expect("index-length", f"{place}.index", index.length_bytes, index_bytes(blocks))


def _check_ngrams(header: Header, ngrams: NGrams, rows: int, place: str) -> None:
    check_heads(ngrams, rows, place)
    if ngrams.id_map is not None:
        vocab = (header.sections[ngrams.id_map].shape or ())[:1]
        _check_array(header, ngrams.id_map, "id_map", "uint32", vocab, f"{place}.id_map")


def _check_array(
    header: Header, number: int, kind: str, dtype: str, shape: tuple[int, ...], place: str
) -> None:
    section = header.sections[number]
    _expect("section-kind", place, section.kind, kind)
    _expect("array-dtype", place, section.dtype, dtype)
    _expect("array-shape", place, section.shape, shape)


def _check_references(header: Header) -> None:
    uses = Counter(number for table in header.tables for number in table.sections)
    for number, section in enumerate(header.sections):
        place = f"sections[{number}]"
        if uses[number] == 0:
            raise FormatError("unused-section", place, f"an unused {section.kind}", "a reference")
        if uses[number] > 1 and section.kind in ("blocks", "index", "token_map"):
            raise FormatError("shared-section", place, f"{uses[number]} references", "one")
    used = {number for table in header.tables for number in table.encodings}
    for number in range(len(header.encodings)):
        if number not in used:
            raise FormatError("unused-encoding", f"encodings[{number}]", "no chunk", "a reference")


def _expect(code: str, place: str, found: object, expected: object) -> None:
    if found != expected:
        raise FormatError(code, place, found, expected)
