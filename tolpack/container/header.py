"""The header: which tables, fields, encodings, chunks and sections a pack holds (SPEC §4–§5).

`parse_header` checks every field for type and range; `tolpack.container.header_checks` then holds
the parts against each other and against the file. A right checksum is no reason to trust them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tolpack.codecs.ans.payload_sizes import MOST_LANES
from tolpack.codecs.ans.record_coder import CODED_CODECS
from tolpack.codecs.encodings import CoderSettings, Encoding, FieldEncoding, Part
from tolpack.codecs.frames import FRAMES
from tolpack.codecs.registry import CODECS
from tolpack.container.edits_header import Edits, parse_edits
from tolpack.container.ngram_header import NGrams, parse_ngrams
from tolpack.container.preamble import (
    MAX_CHUNKS,
    MAX_CLASS_ROWS,
    MAX_FIELDS,
    MAX_FILES,
    MAX_PARTS,
    MAX_ROWS,
    MAX_ROWS_PER_BLOCK,
    MAX_SECTIONS,
    MAX_TABLES,
    MAX_WIDTH,
    SECTION_ALIGNMENT,
    SMALL_SECTION_ALIGNMENT,
)
from tolpack.container.provenance import PROVENANCE_KEY, provenance_text
from tolpack.container.strict_json import parse
from tolpack.container.typed_json import Node, without_none
from tolpack.errors import FormatError

SECTION_KINDS = (
    "token_map", "basis", "mean", "coded_basis", "blocks", "index", "id_map", "code_models",
    "code_classes", "token_ids",
)  # fmt: skip
ARRAY_DTYPES = {"uint8": 1, "uint16": 2, "uint32": 4, "float16": 2, "float32": 4}
# Codecs that the rows of a coded basis may have, and that of entropy-coded ones.
BASIS_CODECS, ENTROPY_CODED_BASIS_CODEC = ("int8", "int4"), "int8"
# The frame of entropy-coded rows and bases, its keys, and the states of a trellis.
CODED_FRAME, CODER_KEYS, TRELLIS_STATES = "ans", ("models", "classes", "class_row", "lanes"), 8


@dataclass(frozen=True, slots=True)
class Section:
    """One extent of the file.

    Array sections (all but ``blocks`` and ``index``) have ``dtype``, ``shape`` and the CRC-32 of
    their bytes; a ``coded_basis`` has a ``codec`` and a ``group_size`` in place of the dtype, and a
    ``coder`` if it is entropy-coded; ``blocks`` and ``index`` carry a checksum in every block
    instead.
    """

    kind: str
    offset_bytes: int
    length_bytes: int
    crc32: int | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    codec: str | None = None
    group_size: int | None = None
    coder: CoderSettings | None = None

    @property
    def part(self) -> Part | None:
        """How one row of a coded basis is stored; ``None`` for other sections."""
        if self.codec is None or self.shape is None:
            return None
        return Part(self.codec, self.shape[-1], self.group_size)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of an array's elements of `stored_dtype`: coded rows are bytes, entropy-coded ones
        of any number.
        """
        shape = self.shape or ()
        if self.coder is not None:
            return (self.length_bytes,)
        return shape if self.part is None else (*shape[:-1], self.part.row_bytes)

    @property
    def stored_dtype(self) -> str:
        """Name of the dtype of an array's elements."""
        return "uint8" if self.part is not None else str(self.dtype)

    @property
    def end_bytes(self) -> int:
        """Offset of the first byte behind the section."""
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True)
class Field:
    """One part of a row, which the model's layer ``layer`` reads: ``width`` values of `dtype` once
    decoded.

    A ``dropped`` field stores nothing and decodes to zeros. With a ``basis`` (a section number)
    the record holds ``rank`` coefficients; a ``mean`` (a section number) is added last.
    """

    name: str
    layer: int
    width: int
    dtype: str = "float32"
    dropped: bool = False
    rank: int | None = None
    basis: int | None = None
    mean: int | None = None

    @property
    def stored_values(self) -> int:
        """Values per row in the record: 0 if dropped, the rank with a basis, else the width."""
        if self.dropped:
            return 0
        return self.width if self.rank is None else self.rank


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of ``rows`` slots with one encoding; ``blocks`` and ``index`` are section numbers."""

    rows: int
    encoding: int
    blocks: int
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, their fields, and the chunks that hold them in slot order.

    ``ngrams``: how the rows of a text are found, in a table of hashed n-grams. ``edits``: whose
    rows its own replace.
    """

    name: str
    rows: int
    fields: tuple[Field, ...]
    chunks: tuple[Chunk, ...]
    token_map: int | None = None
    multiplier: float = 1.0
    ngrams: NGrams | None = None
    edits: Edits | None = None

    @property
    def own_sections(self) -> Iterator[int]:
        """Numbers of the sections that the table itself refers to, each as often as it does."""
        numbers = [self.token_map, None if self.ngrams is None else self.ngrams.id_map]
        numbers += [] if self.edits is None else [self.edits.token_ids]
        numbers += [n for field in self.fields for n in (field.basis, field.mean)]
        numbers += [n for chunk in self.chunks for n in (chunk.blocks, chunk.index)]
        return (number for number in numbers if number is not None)

    @property
    def encodings(self) -> frozenset[int]:
        """Numbers of the encodings of its chunks."""
        return frozenset(chunk.encoding for chunk in self.chunks)

    @property
    def values(self) -> int:
        """Values of all rows, those of dropped fields included."""
        return self.rows * sum(field.width for field in self.fields)

    @property
    def has_other_layers(self) -> bool:
        """Whether layers are not the numbers of the fields."""
        return any(field.layer != number for number, field in enumerate(self.fields))

    @property
    def kept_fields(self) -> tuple[Field, ...]:
        """Fields that have stored values, in order."""
        return tuple(field for field in self.fields if not field.dropped)

    @property
    def macs_per_token(self) -> int:
        """Multiply–accumulates of the basis products for one row."""
        return sum((field.rank or 0) * field.width for field in self.kept_fields)

    def record_bytes(self, encoding: Encoding) -> int:
        """Bytes of one row in `encoding`: the scales of all kept fields, then their codes."""
        parts = [part for field in encoding.fields for part in field]
        return sum(part.row_bytes for part in parts)


@dataclass(frozen=True, slots=True)
class Header:
    """Everything a pack says about itself; sections begin at multiples of ``alignment`` bytes.

    ``provenance``: what it was made from, as `tolpack.container.provenance` has it in JSON.
    """

    tables: tuple[Table, ...]
    encodings: tuple[Encoding, ...]
    sections: tuple[Section, ...]
    producer: str
    file: tuple[int, int] = (0, 1)
    alignment: int = SECTION_ALIGNMENT
    provenance: str | None = None

    @property
    def base(self) -> str | None:
        """Digest of the pack that the file's tables are edits of; ``None`` for a pack."""
        edits = self.tables[0].edits
        return None if edits is None else edits.base

    @property
    def unedited_tables(self) -> tuple[Table, ...]:
        """The tables that a reader shows: those that are not edits of another one."""
        return tuple(table for table in self.tables if table.edits is None)

    def sections_of(self, table: Table) -> Iterator[int]:
        """Yield the numbers of the sections of a table, each as often as it is referred to: by the
        table, its encodings, and its bases.
        """
        yield from table.own_sections
        coders = [self.encodings[number].coder for number in table.encodings]
        coders += [self.sections[f.basis].coder for f in table.fields if f.basis is not None]
        for coder in coders:
            if coder is not None:
                yield from (coder.models, coder.classes)

    def to_json(self) -> bytes:
        """Return the header as compact UTF-8 JSON, the same bytes for the same header."""
        value: dict[str, object] = {
            "producer": self.producer,
            "tables": [_table_json(table) for table in self.tables],
            "encodings": [_encoding_json(encoding) for encoding in self.encodings],
            "sections": [_section_json(section) for section in self.sections],
        }
        if self.alignment != SECTION_ALIGNMENT:
            value["alignment"] = self.alignment
        if self.file != (0, 1):
            value["file"] = {"index": self.file[0], "count": self.file[1]}
        if self.provenance is not None:
            value[PROVENANCE_KEY] = json.loads(self.provenance)
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()


def parse_header(data: bytes) -> Header:
    """Decode header bytes, with every field's type and range checked.

    Raises
    ------
    FormatError
        ``header-json`` or ``header-field``, naming the place.
    """
    root = Node(parse(data), "header")
    nodes = list(root.items("sections", 1, MAX_SECTIONS))
    last = len(nodes) - 1
    sections = tuple(_section(node, last) for node in nodes)
    return Header(
        tables=tuple(_table(node, last) for node in root.items("tables", 1, MAX_TABLES)),
        encodings=tuple(_encoding(node, last) for node in root.items("encodings", 1, MAX_CHUNKS)),
        sections=sections,
        producer=root.text("producer"),
        file=_file(root.node("file")) if root.has("file") else (0, 1),
        alignment=_alignment(root),
        provenance=provenance_text(root.value.get(PROVENANCE_KEY)),
    )


def _alignment(root: Node) -> int:
    only = SMALL_SECTION_ALIGNMENT
    return root.optional_integer("alignment", only, only) or SECTION_ALIGNMENT


def _file(node: Node) -> tuple[int, int]:
    count = node.integer("count", 1, MAX_FILES)
    return node.integer("index", 0, count - 1), count


def _section(node: Node, last_section: int) -> Section:
    kind = node.text("kind", SECTION_KINDS)
    offset = node.integer("offset_bytes", 0, 2**63 - 1)
    length = node.integer("length_bytes", 1, 2**63 - 1)
    if kind in ("blocks", "index"):
        return Section(kind, offset, length)
    crc, shape = node.integer("crc32", 0, 2**32 - 1), node.integers("shape", 1, MAX_ROWS, 2)
    if kind == "coded_basis":
        found = Section(kind, offset, length, crc, None, shape)
        return _coded_basis(node, found, last_section)
    dtype = node.text("dtype", tuple(ARRAY_DTYPES))
    return Section(kind, offset, length, crc, dtype, shape)


def _coded_basis(node: Node, section: Section, last_section: int) -> Section:
    codec, group_size = node.text("codec", BASIS_CODECS), _group_size(node)
    coder = None
    if node.has("frame"):
        node.text("frame", (CODED_FRAME,))
        node.text("codec", (ENTROPY_CODED_BASIS_CODEC,))
        coder = _coder(node, last_section)
    return replace(section, codec=codec, group_size=group_size, coder=coder)


def _coder(node: Node, last_section: int) -> CoderSettings:
    return CoderSettings(
        models=node.integer("models", 0, last_section),
        classes=node.integer("classes", 0, last_section),
        class_row=node.integer("class_row", 0, MAX_CLASS_ROWS - 1),
        lanes=node.integer("lanes", 1, MOST_LANES),
    )


def _table(node: Node, last_section: int) -> Table:
    return Table(
        name=node.text("name"),
        rows=node.integer("rows", 1, MAX_ROWS),
        fields=tuple(_field(n, last_section) for n in node.items("fields", 1, MAX_FIELDS)),
        chunks=tuple(_chunk(n, last_section) for n in node.items("chunks", 1, MAX_CHUNKS)),
        token_map=node.optional_integer("token_map", 0, last_section),
        multiplier=node.number("multiplier", 1.0),
        ngrams=parse_ngrams(node.node("ngrams"), last_section) if node.has("ngrams") else None,
        edits=parse_edits(node.node("edits"), last_section) if node.has("edits") else None,
    )


def _field(node: Node, last_section: int) -> Field:
    width = node.integer("width", 1, MAX_WIDTH)
    return Field(
        name=node.text("name"),
        layer=node.integer("layer", 0, MAX_FIELDS - 1),
        width=width,
        dtype=node.text("dtype", ("float32", "float16", "bfloat16")),
        dropped=node.flag("dropped"),
        rank=node.optional_integer("rank", 1, width),
        basis=node.optional_integer("basis", 0, last_section),
        mean=node.optional_integer("mean", 0, last_section),
    )


def _chunk(node: Node, last_section: int) -> Chunk:
    return Chunk(
        rows=node.integer("rows", 1, MAX_ROWS),
        encoding=node.integer("encoding", 0, MAX_CHUNKS - 1),
        blocks=node.integer("blocks", 0, last_section),
        index=node.optional_integer("index", 0, last_section),
    )


def _encoding(node: Node, last_section: int) -> Encoding:
    frame, coder, codecs = node.text("frame", tuple(FRAMES)), None, tuple(CODECS)
    if frame == CODED_FRAME:
        coder, codecs = _coder(node, last_section), CODED_CODECS
        if node.has("trellis"):
            node.integer("trellis", TRELLIS_STATES, TRELLIS_STATES)
            coder = replace(coder, trellis=True)
    else:
        _check_absent(node, (*CODER_KEYS, "trellis"), f"frame {frame}")
    return Encoding(
        frame=frame,
        rows_per_block=node.integer("rows_per_block", 1, MAX_ROWS_PER_BLOCK),
        fields=tuple(_field_encoding(n, codecs) for n in node.items("fields", 1, MAX_FIELDS)),
        coder=coder,
    )


def _check_absent(node: Node, keys: Iterable[str], described: str) -> None:
    for key in keys:
        if node.has(key):
            found, expected = node.value[key], f"none with {described}"
            raise FormatError("header-field", f"{node.place}.{key}", found, expected)


def _field_encoding(node: Node, codecs: tuple[str, ...]) -> FieldEncoding:
    return tuple(_part(n, codecs) for n in node.items("parts", 1, MAX_PARTS))


def _part(node: Node, codecs: tuple[str, ...]) -> Part:
    codec = node.text("codec", codecs)
    values, known = node.integer("values", 1, MAX_WIDTH), CODECS[codec]
    wanted = {"group_size": known.scale_bytes > 0, "step": known.has_step}
    _check_absent(node, [key for key, wants in wanted.items() if not wants], codec)
    if known.has_step:
        return Part(codec, values, step=node.number("step"))
    return Part(codec, values, _group_size(node) if known.scale_bytes else None)


def _group_size(node: Node) -> int:
    group_size = node.integer("group_size", 2, MAX_WIDTH)
    if group_size % 2:
        raise FormatError("header-field", f"{node.place}.group_size", group_size, "an even number")
    return group_size


def _table_json(table: Table) -> dict[str, object]:
    return without_none(
        name=table.name,
        rows=table.rows,
        multiplier=None if table.multiplier == 1.0 else table.multiplier,
        token_map=table.token_map,
        ngrams=None if table.ngrams is None else table.ngrams.to_json(),
        edits=None if table.edits is None else table.edits.to_json(),
        fields=[_field_json(field) for field in table.fields],
        chunks=[
            without_none(rows=c.rows, encoding=c.encoding, blocks=c.blocks, index=c.index)
            for c in table.chunks
        ],
    )


def _field_json(field: Field) -> dict[str, object]:
    return without_none(
        name=field.name,
        layer=field.layer,
        width=field.width,
        dtype=field.dtype,
        dropped=True if field.dropped else None,
        rank=field.rank,
        basis=field.basis,
        mean=field.mean,
    )


def _encoding_json(encoding: Encoding) -> dict[str, object]:
    return {
        "frame": encoding.frame,
        "rows_per_block": encoding.rows_per_block,
        **_coder_json(encoding.coder),
        "fields": [{"parts": [_part_json(part) for part in parts]} for parts in encoding.fields],
    }


def _coder_json(coder: CoderSettings | None) -> dict[str, object]:
    if coder is None:
        return {}
    trellis = TRELLIS_STATES if coder.trellis else None
    return without_none(**{key: getattr(coder, key) for key in CODER_KEYS}, trellis=trellis)


def _part_json(part: Part) -> dict[str, object]:
    return without_none(
        codec=part.codec, values=part.values, group_size=part.group_size, step=part.step
    )


def _section_json(section: Section) -> dict[str, object]:
    return without_none(
        kind=section.kind,
        offset_bytes=section.offset_bytes,
        length_bytes=section.length_bytes,
        crc32=section.crc32,
        dtype=section.dtype,
        shape=None if section.shape is None else list(section.shape),
        codec=section.codec,
        group_size=section.group_size,
        frame=None if section.coder is None else CODED_FRAME,
        **_coder_json(section.coder),
    )
