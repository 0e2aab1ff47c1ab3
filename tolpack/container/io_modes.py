"""Opening the bytes of a pack: a file or several, on this machine in one of the I/O modes of
`tolpack.open`, or in object storage.
"""

from __future__ import annotations

import os
from pathlib import Path

from tolpack.container.byte_source import ByteSource
from tolpack.container.direct_file import DirectFile
from tolpack.container.file_kind import model_id_hint, not_a_pack_folder
from tolpack.container.local_file import AutoFile, LocalFile, MappedFile, PreadFile, ResidentFile
from tolpack.container.parts.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_manifest
from tolpack.container.parts.parts_source import PartsSource
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.files import is_json, read_whole
from tolpack.storage.locations import Location, local_path

IO_MODES: dict[str, type[LocalFile]] = {
    kind.mode: kind for kind in (AutoFile, PreadFile, MappedFile, DirectFile, ResidentFile)
}
_REMOTE = "remote"


def open_byte_source(
    location: Location, io: str, disk_cache: str | int | None = None
) -> ByteSource:
    """Open the pack at a path in a mode of `IO_MODES`, or the one that a URL names: one file, the
    manifest of several, or the folder that holds a manifest.

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
        As `LocalFile`, `tolpack.container.remote_file.RemoteFile`, or
        `tolpack.container.parts.parts_source.PartsSource`; or a folder holds no manifest.
    """
    path = local_path(location)
    if io not in (*IO_MODES, _REMOTE):  # it may be anything
        raise ConfigError(f"io is {io!r}, expected one of {', '.join(IO_MODES)}")
    if path is not None:
        if io not in IO_MODES:
            raise ConfigError(f"io is 'remote', and {path} is a file of this machine: leave io out")
        return _open_local(path, IO_MODES[io])
    if io not in ("auto", _REMOTE):
        raise ConfigError(
            f"io is {io!r}, and {location} is remote: leave io out, or copy it to this machine"
        )
    from tolpack.container.remote_file import open_remote

    return open_remote(str(location), disk_cache)


def _open_local(path: Path, kind: type[LocalFile]) -> ByteSource:
    manifest = path
    if os.path.isdir(path):  # unlike Path.is_dir, it raises for no path
        manifest = path / MANIFEST_NAME
        if not manifest.is_file():
            raise FileAccessError(not_a_pack_folder(path))
    elif not os.path.exists(path) and model_id_hint(path):
        raise FileAccessError(f"pack {path} does not exist{model_id_hint(path)}")
    elif path.suffix != ".json" or not is_json(path):
        return kind(str(path))  # without memory, os.open refuses a Path by a TypeError
    found = parse_manifest(read_whole(manifest, MAX_MANIFEST_BYTES))
    return PartsSource(found, lambda file: kind(manifest.parent / file.name), kind)
