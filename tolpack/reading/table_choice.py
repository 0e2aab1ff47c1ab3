"""Which table of a pack is read: that of a name, or the only one."""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.container.header import Table
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError
from tolpack.storage.locations import Location


def open_table(
    path: Location, io: str, table: str | None, *, checksums: bool, disk_cache: str | int | None,
    edits_alone: bool = False,
) -> Container:  # fmt: skip
    """Open the pack at a path or URL, and view the table named `table`, or the only one if that is
    ``None``.

    Raises
    ------
    ConfigError
        There is no such table; or there are several, and none is named; or, without `edits_alone`,
        the file holds edits of another pack.
    FileAccessError, FormatError, ChecksumError, UnsupportedVersionError
        As of `Container.open`.
    """
    container = Container.open(path, io, checksums=checksums, disk_cache=disk_cache)
    try:
        if container.header.base is not None and not edits_alone:
            raise ConfigError(
                f"{path} holds edits of a pack, and no rows of its own: open that pack with "
                f"edits=[{str(path)!r}], or --edits {path}"
            )
        number = table_number(container.header.tables, table)
    except ConfigError:
        container.close()
        raise
    return container if number == 0 else container.of_table(number)


def table_number(tables: Sequence[Table], name: str | None) -> int:
    """Return the number of the table of that name, or of the only one; errors as `open_table`.

    Tables that edit another one in the same file are not meant.
    """
    numbers = {
        one.name: number
        for number, one in enumerate(tables)
        if one.edits is None or one.edits.base is not None
    }
    names = list(numbers)
    if name is None and len(names) > 1:
        raise ConfigError(
            f"the pack has {len(names)} tables, {_listed(names)}: choose one by table=NAME, or "
            "--table NAME"
        )
    if name is not None and name not in names:
        raise ConfigError(f"the pack has no table {name!r}: it has {_listed(names)}")
    return numbers[names[0] if name is None else name]


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
