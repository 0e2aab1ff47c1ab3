"""The I/O modes of `tolpack.open` by name: kinds of local files."""

from __future__ import annotations

import os
from pathlib import Path

from tolpack.container.byte_source import ByteSource
from tolpack.container.direct_file import DirectFile
from tolpack.container.local_file import AutoFile, LocalFile, MappedFile, PreadFile, ResidentFile
from tolpack.container.parts.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_manifest
from tolpack.container.parts.parts_source import PartsSource
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.files import read_whole

IO_MODES: dict[str, type[LocalFile]] = {
    kind.mode: kind for kind in (AutoFile, PreadFile, MappedFile, DirectFile, ResidentFile)
}


def open_byte_source(path: str | Path, io: str) -> ByteSource:
    """Open a pack in a mode of `IO_MODES`: one file, or the manifest of several, or the folder that
    holds a manifest.

    Raises
    ------
    ConfigError
        There is no such mode.
    FileAccessError
        As `LocalFile`; or a folder holds no manifest.
    FormatError
        As `tolpack.container.parts.parts_source.PartsSource`.
    """
    if io not in tuple(IO_MODES):  # it may be anything
        raise ConfigError(f"io is {io!r}, expected one of {', '.join(IO_MODES)}")
    manifest = _manifest_path(path)
    return IO_MODES[io](path) if manifest is None else _open_parts(manifest, IO_MODES[io])


def _manifest_path(path: str | Path) -> Path | None:
    """Return the path of the manifest that `path` names, ``None`` if it names a file of a pack."""
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, it raises for no path
        if not (path / MANIFEST_NAME).is_file():
            raise FileAccessError(
                f"folder {path} holds no {MANIFEST_NAME}: it is no pack in parts, or one that is "
                "not finished"
            )
        return path / MANIFEST_NAME
    return path if path.suffix == ".json" else None


def _open_parts(path: Path, kind: type[LocalFile]) -> ByteSource:
    manifest = parse_manifest(read_whole(path, MAX_MANIFEST_BYTES))
    return PartsSource(manifest, lambda file: kind(path.parent / file.name), kind)
