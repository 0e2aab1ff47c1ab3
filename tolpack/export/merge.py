"""One pack of a pack and its edits: the same rows in one file.

Chunks of the pack are copied as they are, with checksums for the new pack id; tables of edits
follow, of which every reader takes the rows that they name. So nothing is decoded and rounded once
more, and of tokens whose rows are right only together with others, none changes that is not edited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.codecs.encodings import Encoding
from tolpack.container.atomic_write import check_output
from tolpack.container.edits_tables import NewEdits, edits_encoding, edits_name
from tolpack.container.header import Header, Section, Table
from tolpack.container.local_sink import LocalSink, check_unfinished
from tolpack.container.parts.parts_source import local_files
from tolpack.container.planned_sections import longest_header, placed_sections
from tolpack.container.preamble import MAX_TABLES, PREAMBLE_BYTES
from tolpack.container.provenance import edited_text
from tolpack.container.verified_reader import Container
from tolpack.container.writer import PackWriter, check_header_room
from tolpack.errors import ConfigError
from tolpack.export.copied_pack import CopiedPack, copy_sections
from tolpack.pack import Pack, open_first_table
from tolpack.reading.edited_rows import EditedRows
from tolpack.reading.edits_files import listed_edits
from tolpack.runtime.array_types import Floats, Ints
from tolpack.runtime.progress import Reporter
from tolpack.storage.inputs import local_output
from tolpack.storage.locations import Location, local_path
from tolpack.version import PRODUCER

# Codecs that rows of edits may have here; others become the first one, which holds them all.
_CODECS = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class MergeResult:
    """A merged pack: its path and bytes, the edited tokens of each table that has some, and how
    many old rows of edited tokens are still in the file.
    """

    path: Path
    bytes: int
    edited_tokens: Mapping[str, int]
    old_rows_left: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path), "bytes": self.bytes,
            "edited_tokens": dict(self.edited_tokens), "old_rows_left": self.old_rows_left,
        }  # fmt: skip


def merge(
    pack: Location,
    edits: Sequence[Location],
    output: str | Path,
    *,
    force: bool = False,
    reporter: Reporter | None = None,
) -> MergeResult:
    """Write a pack with its edits as one pack.

    Other tokens keep their stored bytes. An old row of an edited token is blanked where it can be
    done without touching others: where records are not compressed, or a block has one row.
    Elsewhere it stays in the file, though no reader shows it.

    Parameters
    ----------
    pack : str or Path
        The pack; edits in its own file are kept, where no later ones take their place.
    edits : sequence of str or Path
        Files of edits of this pack; of a token in several of them the last one counts.
    output : str or Path
        The new file. It appears when it is complete.
    force : bool
        Replace an existing file.
    reporter : Reporter, optional
        Receives progress.

    Returns
    -------
    MergeResult
        The finished pack.

    Raises
    ------
    ConfigError
        No edits are named, a file holds none or those of another pack, or the output exists or is
        one of the inputs.
    FormatError, ChecksumError
        The pack or edits are damaged.
    FileAccessError
        Reading or writing failed.
    """
    reporter, path = reporter or Reporter(), local_output(output)
    edits = listed_edits(edits)
    if not edits:
        raise ConfigError("no edits are named: give the files that `tolpack edit` made")
    check_output(path, [pack, *edits])
    check_unfinished(path, [one for one in (pack, *edits) if isinstance(one, (str, Path))])
    if path.exists() and not force:
        raise ConfigError(f"output {path} exists: use --force to replace it, or another name")
    with ExitStack() as stack:
        packs = _open_tables(pack, edits, stack)
        container = packs[0].container
        check_output(path, _files(pack, container))
        return _merge(path, packs, _key(container, edits), force=force, reporter=reporter)


def _open_tables(pack: Location, edits: Sequence[Location], stack: ExitStack) -> list[Pack]:
    """Open each table of a pack with its edits."""
    with open_first_table(pack) as first:
        names = first.tables
    packs = [stack.enter_context(Pack(pack, table=names[0], edits=edits))]
    return packs + [stack.enter_context(packs[0].open_table(name)) for name in names[1:]]


def _files(pack: Location, container: Container) -> list[Path]:
    path = local_path(pack)
    return [] if path is None else local_files(path, container.source)


def _key(base: Container, edits: Sequence[Location]) -> bytes:
    """SHA-256 of what the new pack is made of."""
    found = hashlib.sha256(f"tolpack merge {base.digest()}".encode())
    for one in edits:
        with closing(Container.open(one)) as container:
            found.update(container.digest().encode())
    return found.digest()


def _merge(
    path: Path, packs: Sequence[Pack], key: bytes, *, force: bool, reporter: Reporter
) -> MergeResult:
    base = packs[0].container
    copied, new = CopiedPack.of(base.header), _new_edits(packs)
    slots = [np.sort(one.slots(one.edited_tokens)) for one in packs]
    start, _ = longest_header(partial(_planned, copied, new))
    size = base.preamble.file_length
    check_header_room(start - PREAMBLE_BYTES)
    sink = LocalSink(path, key.hex(), resume=False, replace=force, resumable=False)
    room, alignment = start - PREAMBLE_BYTES, base.header.alignment
    with PackWriter(sink, key, room, alignment=alignment) as writer:
        try:
            writer.expect(size)
            with reporter.phase("merging", size, "B") as done:
                views = [one.container for one in packs]
                left = copy_sections(copied, views, slots, writer, done)
            first, encoding = len(copied.tables), len(copied.encodings)
            tables = [
                one.write(writer, first + number, encoding + number)
                for number, one in enumerate(new)
            ]
            nbytes = writer.commit(_header(copied, new, tables, writer.sections))
        except BaseException:
            writer.discard()
            raise
    tokens = {one.edited.name: len(one.token_ids) for one in new}
    return MergeResult(path, nbytes, tokens, left)


def _new_edits(packs: Sequence[Pack]) -> list[NewEdits]:
    """Return the tables of edits of the new file: of each table all its edits together."""
    taken = set(packs[0].tables)
    found = []
    for pack in packs:
        if pack.edits is None:
            continue
        table, ids = pack.container.table, pack.edited_tokens
        rows = partial(_rows, pack.edits, ids)
        encoding = edits_encoding(table, _codecs(pack.edits), len(ids), rows)
        name = edits_name(table.name, taken)
        taken.add(name)
        found.append(NewEdits(name, table, None, ids, rows, encoding))
    if len(taken) > MAX_TABLES:
        raise ConfigError(
            f"with edits the pack would have {len(taken)} tables, and the format allows "
            f"{MAX_TABLES}: edit fewer tables"
        )
    return found


def _rows(edits: EditedRows, ids: Ints, start: int, stop: int) -> Floats:
    """Return rows ``start … stop-1`` of all edits of a table."""
    found = edits.find(ids[start:stop])
    return np.empty((0, 0), np.float32) if found is None else found.values()


def _codecs(edits: EditedRows) -> list[str]:
    """Return by which codec each kept field of new edits is stored, that no value changes."""
    used = [encoding.fields for encoding in edits.encodings]
    found = [{part.codec for parts in one for part in parts} for one in zip(*used, strict=True)]
    return [
        codecs.pop() if len(codecs) == 1 and codecs <= set(_CODECS) else _CODECS[0]
        for codecs in found
    ]


def _planned(copied: CopiedPack, new: Sequence[NewEdits], start: int) -> Header:
    """Return the longest header of the new file, given where sections begin."""
    sections, tables = copied.planned_sections(), []
    for number, one in enumerate(new):
        sections += one.planned_sections()
        last = len(sections) - 1
        index = last if one.encoding.is_compressed else None
        tables.append(one.table(last, last, index, len(copied.encodings) + number))
    return _header(copied, new, tables, placed_sections(sections, start, copied.header.alignment))


def _header(
    copied: CopiedPack, new: Sequence[NewEdits], tables: Sequence[Table],
    sections: Sequence[Section],
) -> Header:  # fmt: skip
    encodings: list[Encoding] = [*copied.placed_encodings, *(one.encoding for one in new)]
    placed = map(copied.placed, sections[: len(copied.numbers)])
    return Header(
        (*copied.tables, *tables), tuple(encodings),
        (*placed, *sections[len(copied.numbers) :]), PRODUCER, alignment=copied.header.alignment,
        provenance=edited_text(copied.header.provenance),
    )  # fmt: skip
