"""Holding a header's parts against each other and against the file (SPEC §5, §10).

All arithmetic is on Python integers, which do not wrap. After `check_header` every extent lies
inside the file, no two overlap, nothing is left over, and every size that a reader allocates
follows from numbers that were checked.
"""

from __future__ import annotations

import math
from collections import Counter

from tolpack.codecs.ans.models import MOST_MODELS, NARROWEST, WIDEST
from tolpack.codecs.encodings import CoderSettings
from tolpack.container.block_sizes import BlockSizes, block_sizes, coded_basis_bytes
from tolpack.container.edits_checks import check_edits
from tolpack.container.header import ARRAY_DTYPES, Chunk, Field, Header, Section, Table
from tolpack.container.header_features import required_features
from tolpack.container.index import LENGTH_BYTES, index_bytes
from tolpack.container.ngram_header import NGrams, check_heads
from tolpack.container.preamble import (
    FEATURES,
    MAX_ARRAY_BYTES,
    MAX_BLOCK_BYTES,
    MAX_ROW_VALUES,
    PREAMBLE_BYTES,
    Preamble,
    align,
)
from tolpack.container.token_chunks import MOST_CHUNKS, MOST_ROWS, map_bytes
from tolpack.errors import FormatError

# Rows of a table whose slots fit two bytes.
_MAX_SHORT_SLOTS = 1 << 16


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
            _check_token_map(header, table, table.token_map, f"{place}.token_map")
        if table.ngrams is not None:
            _check_ngrams(header, table.ngrams, table.rows, f"{place}.ngrams")
        if table.edits is not None:
            shape = (table.rows,)
            number, own = table.edits.token_ids, f"{place}.edits.token_ids"
            _check_array(header, number, "token_ids", "uint32", shape, own)
    check_edits(header)
    _check_references(header)
    _expect("feature-mismatch", "preamble.required_features", preamble.required_features,
            required_features(header))  # fmt: skip


def _check_extents(header: Header, preamble: Preamble) -> None:
    end = PREAMBLE_BYTES + preamble.header_length
    for number, section in enumerate(header.sections):
        place = f"sections[{number}]"
        expected = align(end, header.alignment)
        _expect("section-offset", f"{place}.offset_bytes", section.offset_bytes, expected)
        end = section.end_bytes
        if end > preamble.file_length:
            raise FormatError(
                "extent-past-end", place, f"end {end}", f"at most {preamble.file_length}"
            )
        if section.shape is None:
            continue
        size = math.prod(section.stored_shape) * ARRAY_DTYPES[section.stored_dtype]
        _expect("array-length", f"{place}.length_bytes", section.length_bytes, size)
        if section.coder is not None:
            size = _check_coded_basis(header, section, section.coder, place)
        if size > MAX_ARRAY_BYTES:
            raise FormatError("array-length", place, size, f"at most {MAX_ARRAY_BYTES} bytes")
    _expect("trailing-bytes", "file", preamble.file_length, end)


def _check_coded_basis(header: Header, section: Section, coder: CoderSettings, place: str) -> int:
    """Hold an entropy-coded basis against its models, and return the bytes of its decoded rows."""
    part, (rank, *columns) = section.part, section.shape or (0,)
    if part is None or not columns:
        raise FormatError("array-shape", f"{place}.shape", section.shape, "rank and width")
    if int(part.group_size or 0) < part.values:
        expected = f"at least {part.values}, one scale a row"
        raise FormatError("header-field", f"{place}.group_size", part.group_size, expected)
    least, most = coded_basis_bytes(coder.lanes, rank, part.values)
    if not least <= section.length_bytes <= most:
        expected = f"{least} … {most} bytes"
        raise FormatError("array-length", f"{place}.length_bytes", section.length_bytes, expected)
    _check_coder(header, coder, place)
    classes = (header.sections[coder.classes].shape or ())[-1]
    if classes < rank:
        raise FormatError("array-shape", f"{place}.classes", classes, f"at least {rank} classes")
    return rank * part.row_bytes


def _check_coder(header: Header, coder: CoderSettings, place: str) -> None:
    """Hold an entropy coder against its sections."""
    for key, number, kind, dtype in (
        ("models", coder.models, "code_models", "uint16"),
        ("classes", coder.classes, "code_classes", "uint8"),
    ):
        _check_kind(header, number, kind, dtype, f"{place}.{key}")
    models, classes = (header.sections[n].shape or () for n in (coder.models, coder.classes))
    most, width = models if len(models) == 2 else (0, 0)
    if not (1 <= most <= MOST_MODELS and NARROWEST <= width <= WIDEST and width % 2):
        expected = f"[1 … {MOST_MODELS}, {NARROWEST} … {WIDEST}], the latter odd"
        raise FormatError("array-shape", f"{place}.models", models, expected)
    if len(classes) != 2:
        raise FormatError("array-shape", f"{place}.classes", classes, "rows of classes")
    if coder.class_row >= classes[0]:
        raise FormatError(
            "reference", f"{place}.class_row", coder.class_row, f"rows below {classes[0]}"
        )


def _check_token_map(header: Header, table: Table, number: int, place: str) -> None:
    rows, chunks, dtype = table.rows, len(table.chunks), header.sections[number].dtype
    if dtype == "uint8" and rows <= MOST_ROWS and chunks <= MOST_CHUNKS:
        shape = (map_bytes(rows, chunks),)
        _check_array(header, number, "token_map", "uint8", shape, place)
        return
    short = rows <= _MAX_SHORT_SLOTS and dtype == "uint16"
    _check_array(header, number, "token_map", "uint16" if short else "uint32", (rows,), place)


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
    sizes = {number: _check_encoding(header, table, number) for number in sorted(used)}
    for number, chunk in enumerate(table.chunks):
        _check_chunk(header, chunk, sizes[chunk.encoding], f"{place}.chunks[{number}]")


def _check_encoding(header: Header, table: Table, number: int) -> BlockSizes:
    """Hold an encoding against the table's fields, and return the sizes of its blocks."""
    encoding, place = header.encodings[number], f"encodings[{number}]"
    stored = [sum(part.values for part in parts) for parts in encoding.fields]
    kept = [field.stored_values for field in table.kept_fields]
    _expect("encoding-fields", f"{place}.fields", stored, kept)
    record = table.record_bytes(encoding)
    if record * encoding.rows_per_block > MAX_BLOCK_BYTES:
        raise FormatError(
            "block-size", place, record * encoding.rows_per_block, f"at most {MAX_BLOCK_BYTES}"
        )
    if encoding.coder is not None:
        _check_coder(header, encoding.coder, place)
        classes = (header.sections[encoding.coder.classes].shape or ())[-1]
        _expect("array-shape", f"{place}.classes", classes, encoding.values)
    return block_sizes(encoding, record)


def _check_chunk(header: Header, chunk: Chunk, sizes: BlockSizes, place: str) -> None:
    encoding = header.encodings[chunk.encoding]
    blocks = -(-chunk.rows // encoding.rows_per_block)
    section = header.sections[chunk.blocks]
    _expect("section-kind", f"{place}.blocks", section.kind, "blocks")
    if not encoding.is_compressed:
        size = blocks * sizes.longest
        _expect("chunk-length", f"{place}.blocks", section.length_bytes, size)
        _expect("raw-with-index", f"{place}.index", chunk.index, None)
        return
    if chunk.index is None:
        raise FormatError("frames-without-index", place, "no index", "an index section")
    index = header.sections[chunk.index]
    _expect("section-kind", f"{place}.index", index.kind, "index")
    each = (sizes.length_bytes,) if encoding.coder is None else LENGTH_BYTES
    allowed = [index_bytes(blocks, length_bytes) for length_bytes in each]
    if index.length_bytes not in allowed:
        expected = f"{' or '.join(map(str, allowed))} bytes"
        raise FormatError("index-length", f"{place}.index", index.length_bytes, expected)


def _check_ngrams(header: Header, ngrams: NGrams, rows: int, place: str) -> None:
    check_heads(ngrams, rows, place)
    if ngrams.id_map is not None:
        vocab = (header.sections[ngrams.id_map].shape or ())[:1]
        _check_array(header, ngrams.id_map, "id_map", "uint32", vocab, f"{place}.id_map")


def _check_array(
    header: Header, number: int, kind: str, dtype: str, shape: tuple[int, ...], place: str
) -> None:
    _check_kind(header, number, kind, dtype, place)
    _expect("array-shape", place, header.sections[number].shape, shape)


def _check_kind(header: Header, number: int, kind: str, dtype: str, place: str) -> None:
    section = header.sections[number]
    _expect("section-kind", place, section.kind, kind)
    _expect("array-dtype", place, section.dtype, dtype)


def _check_references(header: Header) -> None:
    uses = Counter(n for table in header.tables for n in header.sections_of(table))
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
