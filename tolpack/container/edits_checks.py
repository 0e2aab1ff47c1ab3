"""Holding tables of edits against the tables whose rows they replace (SPEC §5, *Edits*)."""

from __future__ import annotations

from tolpack.container.edits_header import Edits
from tolpack.container.header import Header, Table
from tolpack.errors import FormatError


def check_edits(header: Header) -> None:
    """Raise `FormatError` (code ``edits``) unless all tables with edits obey the format's rules.

    The rows of their tables and their array of token ids are checked elsewhere.
    """
    if not any(table.edits is not None for table in header.tables):
        return
    unedited = {table.name: table for table in header.unedited_tables}
    edited: set[str] = set()
    for number, table in enumerate(header.tables):
        place = f"tables[{number}]"
        _check_base(header, table, place)
        if table.edits is None:
            continue
        if table.edits.table in edited:
            found = f"{table.edits.table!r} twice"
            raise FormatError("edits", f"{place}.edits.table", found, "one table of edits each")
        edited.add(table.edits.table)
        _check_plain(table, place)
        if table.rows > table.edits.rows:
            expected = f"at most {table.edits.rows}, the rows of {table.edits.table}"
            raise FormatError("edits", f"{place}.rows", table.rows, expected)
        if table.edits.base is None:
            _check_edited(table, table.edits, unedited.get(table.edits.table), place)


def _check_base(header: Header, table: Table, place: str) -> None:
    """Either all tables are edits of one pack, or all edits are of tables of this file."""
    base = None if table.edits is None else table.edits.base
    if base != header.base:
        found = "no edits" if table.edits is None else base
        expected = "no digest, as in the first table" if header.base is None else header.base
        raise FormatError("edits", f"{place}.edits.base", found, expected)


def _check_plain(table: Table, place: str) -> None:
    """Rows of edits are stored whole, and found by token ids alone."""
    for key, has in (
        ("token_map", table.token_map is not None),
        ("ngrams", table.ngrams is not None),
        ("multiplier", table.multiplier != 1.0),
        ("fields", any(f.basis is not None or f.mean is not None for f in table.fields)),
    ):
        if has:
            what = "a basis or a mean" if key == "fields" else "it"
            raise FormatError("edits", f"{place}.{key}", what, "rows that are stored whole")


def _check_edited(table: Table, edits: Edits, edited: Table | None, place: str) -> None:
    """Hold a table of edits against the one that it edits, in the same file."""
    if edited is None:
        expected = "a table of this file, no edits"
        raise FormatError("edits", f"{place}.edits.table", edits.table, expected)
    check_fit(table, edits, edited, place)


def check_fit(table: Table, edits: Edits, edited: Table, place: str) -> None:
    """Raise `FormatError` (code ``edits``) unless rows of a table, by its key `edits`, are rows of
    the `edited` table, of the same file or of another.
    """
    if edits.rows != edited.rows:
        raise FormatError("edits", f"{place}.edits.rows", edits.rows, edited.rows)
    difference = _fields_difference(table, edited)
    if difference is not None:
        raise FormatError("edits", f"{place}.fields", *difference)


def _fields_difference(table: Table, edited: Table) -> tuple[str, str] | None:
    """Return how the fields of a table of edits differ from those of the `edited` table: what was
    found and expected; ``None`` if they fit.
    """
    own, wanted = ([(f.name, f.layer, f.width, f.dropped) for f in t.fields]
                   for t in (table, edited))  # fmt: skip
    if len(own) != len(wanted):
        return f"{len(own)} fields", f"{len(wanted)} fields"
    for one, other in zip(own, wanted):
        if one != other:
            return _described(*one), _described(*other)
    return None


def _described(name: str, layer: int, width: int, dropped: bool) -> str:
    return f"{name!r} of layer {layer}, {width} values{', dropped' * dropped}"
