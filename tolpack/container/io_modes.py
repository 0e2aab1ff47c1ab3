"""The I/O modes of `tolpack.open` by name: kinds of local files; and remote ones, named by URLs."""

from __future__ import annotations

from tolpack.container.byte_source import ByteSource
from tolpack.container.direct_file import DirectFile
from tolpack.container.local_file import AutoFile, LocalFile, MappedFile, PreadFile, ResidentFile
from tolpack.errors import ConfigError
from tolpack.storage.locations import Location, local_path

IO_MODES: dict[str, type[LocalFile]] = {
    kind.mode: kind for kind in (AutoFile, PreadFile, MappedFile, DirectFile, ResidentFile)
}
_REMOTE = "remote"


def open_byte_source(
    location: Location, io: str, disk_cache: str | int | None = None
) -> ByteSource:
    """Open the file at a path in a mode of `IO_MODES`, or the one that a URL names.

    Parameters
    ----------
    location : str or Path
        Path or URL.
    io : str
        The mode; a URL takes ``"auto"`` or ``"remote"``, which are the same to it.
    disk_cache : str or int, optional
        Bytes of the disk cache for what a URL names; a file of this machine needs none.

    Raises
    ------
    ConfigError
        There is no such mode, or it is not for this location.
    FileAccessError, FormatError
        As `LocalFile`, or `tolpack.container.remote_file.RemoteFile`.
    """
    path = local_path(location)
    if io not in (*IO_MODES, _REMOTE):  # it may be anything
        raise ConfigError(f"io is {io!r}, expected one of {', '.join(IO_MODES)}")
    if path is not None:
        if io not in IO_MODES:
            raise ConfigError(f"io is 'remote', and {path} is a file of this machine: leave io out")
        return IO_MODES[io](path)
    if io not in ("auto", _REMOTE):
        raise ConfigError(
            f"io is {io!r}, and {location} is remote: leave io out, or copy it to this machine"
        )
    from tolpack.container.remote_file import open_remote_file

    return open_remote_file(location, disk_cache)
