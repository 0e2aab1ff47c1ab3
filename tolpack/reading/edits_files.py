"""Opening edits with the pack that they belong to: those in its own file, and files beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from tolpack.container.edits_checks import check_fit
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError, FormatError
from tolpack.reading.edited_rows import EditedRows, EditsTable
from tolpack.storage.locations import Location, local_path

# Files of edits up to this size are read into memory when they are opened: it takes milliseconds.
_RESIDENT_BYTES = 16 << 20


def listed_edits(edits: Iterable[Location]) -> tuple[Location, ...]:
    """Return files of edits as a tuple, which can be gone through more than once.

    Raises
    ------
    ConfigError
        It is one file: a text would be taken for a list of letters.
    """
    if isinstance(edits, (str, os.PathLike)):
        raise ConfigError(f"edits is {str(edits)!r}, expected a list of files: edits=[…]")
    return tuple(edits)


def open_edits(
    base: Container, path: Location, edits: Sequence[Location], io: str, threads: int,
    disk_cache: str | int | None,
) -> EditedRows | None:  # fmt: skip
    """Open what edits the table of `base`, the pack at `path`.

    Parameters
    ----------
    base : Container
        The open pack.
    path : str or Path
        What messages call it.
    edits : sequence of str or Path
        Files of edits; the last one wins, and all do over those in the pack's own file.
    io, threads, disk_cache
        As of `tolpack.Pack`, for files that are not read into memory at once.

    Returns
    -------
    EditedRows or None
        ``None`` if there are no edits of this table.

    Raises
    ------
    ConfigError
        A file holds no edits, or those of another pack.
    FileAccessError, FormatError
        It cannot be read, or is damaged.
    """
    tables = [EditsTable(view, threads) for view in _embedded(base)]
    opened: list[Container] = []
    try:
        digest = base.digest() if edits else ""
        for one in edits:
            mode = _io_mode(one, io)
            opened.append(
                Container.open(one, mode, checksums=base.checksums, disk_cache=disk_cache)
            )
            view = _view(opened[-1], one, base, path, digest)
            if view is None:
                opened.pop().close()
            else:
                tables.append(EditsTable(view, threads))
        found = EditedRows(tables, base.table.rows) if tables else None
        if found is not None and edits:
            found.load()
    except BaseException:
        for container in opened:
            container.close()
        raise
    return found


def share_edits(packs: Sequence[Location], edits: Sequence[Location]) -> list[tuple[Location, ...]]:
    """Return for each of several packs the files of edits that belong to it, in their order.

    Raises
    ------
    ConfigError
        There are edits but no packs; or a file holds no edits, or those of none of the packs.
    FileAccessError, FormatError
        A file cannot be read, or is damaged.
    """
    if edits and not packs:
        raise ConfigError(f"{edits[0]} holds edits of a pack, and none is named: add that PACK")
    found: list[list[Location]] = [[] for _ in packs]
    digests = [_digest(pack) for pack in packs] if edits else []
    for one in edits:
        with closing(Container.open(one)) as container:
            base = _base(container, one)
        owners = [own for own, digest in zip(found, digests) if digest == base]
        if not owners:
            raise ConfigError(_foreign(one, " and ".join(map(str, packs))))
        for own in owners:
            own.append(one)
    return [tuple(own) for own in found]


def _digest(pack: Location) -> str:
    with closing(Container.open(pack)) as container:
        return container.digest()


def _embedded(base: Container) -> Iterator[Container]:
    """Yield the edits of the pack's table in its own file."""
    for number, table in enumerate(base.header.tables):
        edits = table.edits
        if edits is not None and edits.base is None and edits.table == base.table.name:
            yield base.of_table(number)


def _io_mode(location: Location, io: str) -> str:
    path = local_path(location)
    if path is None:
        return "auto"
    if os.path.isfile(path) and os.path.getsize(path) <= _RESIDENT_BYTES:
        return "memory"
    return "auto" if io == "remote" else io


def _view(
    edits: Container, location: Location, base: Container, path: Location, digest: str
) -> Container | None:
    """Return the table of `edits` that edits the table of `base`, the pack at `path`; ``None`` if
    there is none.
    """
    if _base(edits, location) != digest:
        raise ConfigError(_foreign(location, str(path)))
    names = [table.name for table in base.header.unedited_tables]
    found = None
    for number, table in enumerate(edits.header.tables):
        own, place = table.edits, f"{location}, tables[{number}]"
        if own is None or own.table not in names:
            name = own and own.table
            raise FormatError("edits", f"{place}.edits.table", name, " or ".join(names))
        if own.table == base.table.name:
            check_fit(table, own, base.table, place)
            found = edits.of_table(number)
    return found


def _base(edits: Container, location: Location) -> str:
    """Return the digest of the pack that edits belong to."""
    base = edits.header.base
    if base is None:
        raise ConfigError(
            f"{location} is a pack, and holds no edits of another one: edits are made by `tolpack "
            "edit`"
        )
    return base


def _foreign(edits: Location, packs: str) -> str:
    return (
        f"{edits} holds edits of another pack than {packs}, or of an earlier build of it: make the "
        "edits again from this pack, by `tolpack edit`"
    )
