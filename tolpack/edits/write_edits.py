"""Writing edits: a file with new rows for some tokens, which belongs to one pack.

The pack itself is not changed. It is known by the SHA-256 of its preamble and header, so edits of
another pack, or of an earlier build, are refused when they are opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tolpack.container.atomic_write import check_output, refuse_existing
from tolpack.container.edits_tables import NewEdits, edits_encoding
from tolpack.container.header import Field, Header, Section, Table
from tolpack.container.local_sink import LocalSink
from tolpack.container.parts.parts_source import local_files
from tolpack.container.planned_sections import longest_header, placed_sections
from tolpack.container.preamble import PREAMBLE_BYTES, SMALL_SECTION_ALIGNMENT
from tolpack.container.writer import PackWriter, check_header_room
from tolpack.errors import ConfigError, TokenIdError
from tolpack.pack import Pack
from tolpack.reading.lookup import check_ids
from tolpack.runtime.array_types import Floats, Ints
from tolpack.storage.locations import local_path
from tolpack.version import PRODUCER

# Rows of a table: float32 (tokens, fields, width), or of each field float32 (tokens, width).
NewRows = NDArray[np.float32] | Sequence[NDArray[np.float32]]
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class WrittenEdits:
    """A finished file of edits: its path, its bytes, and the tokens that each table has."""

    path: Path
    nbytes: int
    tokens: Mapping[str, int]


def write_edits(
    base: Pack,
    output: str | Path,
    token_ids: ArrayLike,
    rows: Mapping[str, NewRows],
    *,
    bits: int = 32,
    force: bool = False,
) -> WrittenEdits:
    """Write new rows for some tokens of a pack.

    Parameters
    ----------
    base : Pack
        The open pack that they belong to.
    output : str or Path
        The file. It appears when it is complete.
    token_ids : array_like of int
        (tokens,), strictly ascending.
    rows : mapping
        By name of a table of the pack: float32 (tokens, fields, width), or a sequence of float32
        (tokens, width), one for each field. Values are those that `Pack.rows` shall give. A dropped
        field stays zero, whatever is given for it.
    bits : int
        32: values are kept as they are. 16: rounded to bfloat16 where the pack's field was that,
        and to float16 elsewhere.
    force : bool
        Replace an existing file.

    Returns
    -------
    WrittenEdits
        The finished file.

    Raises
    ------
    ConfigError
        There is no such table, rows do not fit it, or values do not fit `bits`; or the output
        exists, or is the pack itself or edits that it was opened with.
    TokenIdError
        Ids are out of range, or not strictly ascending.
    FileAccessError
        Reading the pack or writing failed.
    """
    path = Path(output)
    check_output(path, [base.path, *_pack_files(base), *base.edit_files])
    refuse_existing(path, force=force)
    if bits not in (16, 32):
        raise ConfigError(f"bits is {bits!r}, expected 32 or 16")
    header = base.container.header
    tables = {table.name: table for table in header.unedited_tables}
    if not rows:
        raise ConfigError("there are no rows: name a table of the pack")
    wrong = next((name for name in rows if name not in tables), None)
    if wrong is not None:
        raise ConfigError(f"the pack has no table {wrong!r}: it has {', '.join(tables)}")
    digest = base.digest
    new = [
        _new_edits(tables[name], digest, ascending_ids(token_ids, tables[name]), rows[name], bits)
        for name in tables
        if name in rows
    ]
    nbytes = _write(path, new, force=force)
    return WrittenEdits(path, nbytes, {one.name: len(one.token_ids) for one in new})


def ascending_ids(token_ids: ArrayLike, table: Table) -> Ints:
    """Return ids of rows of `table` that may be edited, int64 (n,).

    Raises
    ------
    TokenIdError
        They are none, out of range, or not strictly ascending.
    """
    ids = check_ids(token_ids, min(table.rows, 1 << 32))
    if not len(ids):
        raise TokenIdError("no token is named: edits need one at least")
    if len(ids) > 1 and int(np.diff(ids).min()) <= 0:
        raise TokenIdError("token ids are not strictly ascending: sort them, each once")
    return ids


def _pack_files(pack: Pack) -> list[Path]:
    path = local_path(pack.path)
    return [] if path is None else local_files(path, pack.container.source)


def _new_edits(table: Table, digest: str, ids: Ints, rows: NewRows, bits: int) -> NewEdits:
    columns = _columns(table, len(ids), rows)
    kept = [(f, c) for f, c in zip(table.fields, columns, strict=True) if not f.dropped]
    codecs = [_codec(field, values, bits) for field, values in kept]
    give = partial(_row_range, [values for _, values in kept])
    encoding = edits_encoding(table, codecs, len(ids), give)
    return NewEdits(table.name, table, digest, ids, give, encoding)


def _columns(table: Table, count: int, rows: NewRows) -> list[Floats]:
    """Return the rows of each field, float32 (count, width)."""
    if isinstance(rows, np.ndarray) and rows.ndim != 3:
        raise ConfigError(
            f"rows of {table.name} are {list(rows.shape)}, expected [tokens, fields, width]"
        )
    given = list(np.moveaxis(rows, 1, 0)) if isinstance(rows, np.ndarray) else list(rows)
    if len(given) != len(table.fields):
        raise ConfigError(
            f"rows of {table.name} have {len(given)} fields, expected {len(table.fields)}"
        )
    for field, values in zip(table.fields, given):
        if values.shape != (count, field.width) or values.dtype != np.float32:
            raise ConfigError(
                f"rows of {table.name}, {field.name} are {values.dtype} {values.shape}, expected "
                f"float32 {(count, field.width)}"
            )
    return given


def _codec(field: Field, values: Floats, bits: int) -> str:
    if bits == 32:
        return "f32"
    if field.dtype == "bfloat16":
        return "bf16"
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    if largest > _LARGEST_FLOAT16:
        raise ConfigError(
            f"{field.name} has values up to {largest:g}, and float16 ends at "
            f"{_LARGEST_FLOAT16:g}: use --bits 32"
        )
    return "f16"


def _row_range(columns: Sequence[Floats], start: int, stop: int) -> Floats:
    return np.concatenate([values[start:stop] for values in columns], axis=1)


def _write(path: Path, new: Sequence[NewEdits], *, force: bool) -> int:
    """Write the file; returns its bytes."""
    start, _ = longest_header(partial(_planned, new))
    room, key, alignment = start - PREAMBLE_BYTES, _key(new), SMALL_SECTION_ALIGNMENT
    check_header_room(room)
    sink = LocalSink(path, key.hex(), resume=False, replace=force, resumable=False)
    with PackWriter(sink, key, room, alignment=alignment) as writer:
        try:
            tables = [one.write(writer, number, number) for number, one in enumerate(new)]
            return writer.commit(_header(new, tables, writer.sections))
        except BaseException:
            writer.discard()
            raise


def _planned(new: Sequence[NewEdits], start: int) -> Header:
    """Return the longest header, given where sections begin."""
    sections, tables = list[Section](), []
    for number, one in enumerate(new):
        sections += one.planned_sections()
        last = len(sections) - 1
        tables.append(one.table(last, last, last if one.encoding.is_compressed else None, number))
    return _header(new, tables, placed_sections(sections, start, SMALL_SECTION_ALIGNMENT))


def _header(
    new: Sequence[NewEdits], tables: Sequence[Table], sections: Sequence[Section]
) -> Header:
    encodings = tuple(one.encoding for one in new)
    return Header(
        tuple(tables), encodings, tuple(sections), PRODUCER, alignment=SMALL_SECTION_ALIGNMENT
    )


def _key(new: Sequence[NewEdits]) -> bytes:
    """SHA-256 of what the file says and holds."""
    found = hashlib.sha256()
    for one in new:
        found.update(repr((one.table(0, 0, None, 0), one.encoding)).encode())
        found.update(one.token_ids.astype("<u4").tobytes())
        step = max(1, (8 << 20) // (4 * max(1, one.edited.values // one.edited.rows)))
        for begin in range(0, len(one.token_ids), step):
            found.update(one.rows(begin, min(begin + step, len(one.token_ids))).data)
    return found.digest()
