"""The I/O modes of `tolpack.open` by name: kinds of local files."""

from __future__ import annotations

from pathlib import Path

from tolpack.container.byte_source import ByteSource
from tolpack.container.direct_file import DirectFile
from tolpack.container.local_file import AutoFile, LocalFile, MappedFile, PreadFile, ResidentFile
from tolpack.errors import ConfigError

IO_MODES: dict[str, type[LocalFile]] = {
    kind.mode: kind for kind in (AutoFile, PreadFile, MappedFile, DirectFile, ResidentFile)
}


def open_byte_source(path: str | Path, io: str) -> ByteSource:
    """Open the file at `path` in a mode of `IO_MODES`.

    Raises
    ------
    ConfigError
        There is no such mode.
    FileAccessError
        As `LocalFile`.
    """
    if io not in tuple(IO_MODES):  # it may be anything
        raise ConfigError(f"io is {io!r}, expected one of {', '.join(IO_MODES)}")
    return IO_MODES[io](path)
