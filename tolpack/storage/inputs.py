"""Files that are only read, on this machine or elsewhere, opened in one way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from tolpack.errors import ConfigError
from tolpack.runtime import files
from tolpack.storage.locations import Location, local_path, without_credentials
from tolpack.storage.remote_input import open_remote_stream
from tolpack.storage.remote_path import RemotePath

InputPath = Path | RemotePath


def input_path(location: Location | RemotePath) -> InputPath:
    """Return the path of an input: `RemotePath` for a URL of another kind than ``file://``.

    Raises
    ------
    ConfigError
        A URL holds more than a bucket or host and a path; see `RemotePath` and `local_path`.
    """
    if isinstance(location, RemotePath):
        return location
    return local_path(location) or RemotePath(str(location))


def local_input(location: Location | RemotePath, user: str, remedy: str = "") -> Path:
    """Return the path of an input that has to be on this machine.

    Parameters
    ----------
    location : str, Path or RemotePath
        The input.
    user : str
        Who needs it there, for the message.
    remedy : str
        What else can be done than to download it.

    Raises
    ------
    ConfigError
        It is elsewhere.
    """
    path = input_path(location)
    if isinstance(path, RemotePath):
        raise ConfigError(
            f"{user} is read from a disk of this machine only, and {path} is elsewhere: download "
            f"it first, and give its path{remedy and ', or '}{remedy}"
        )
    return path


def local_output(location: Location) -> Path:
    """Return the path of an output that has to be on this machine.

    Raises
    ------
    ConfigError
        It is elsewhere.
    """
    path = local_path(location)
    if path is None:
        raise ConfigError(
            f"output {without_credentials(location)} is elsewhere, and files are written on this "
            "machine only: give a path, and copy the file there"
        )
    return path


def open_stream(location: Location | RemotePath) -> BinaryIO:
    """Open a file as a stream of bytes, which can be read, and sought in.

    Raises
    ------
    FileAccessError
        It is missing, unreadable or no regular file.
    """
    path = input_path(location)
    return open_remote_stream(path) if isinstance(path, RemotePath) else files.open_stream(path)


def stream_size(file: BinaryIO) -> int:
    """Return the bytes of a stream, and leave it at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def read_whole(location: Location | RemotePath, most_bytes: int) -> bytes:
    """Return the content of a file of at most `most_bytes`.

    Raises
    ------
    FileAccessError
        It is longer, or as of `open_stream`.
    """
    path = input_path(location)
    if isinstance(path, Path):
        return files.read_whole(path, most_bytes)
    return path.folder.read_whole(path.name, most_bytes)


def file_state(path: InputPath) -> tuple[Any, ...] | None:
    """Return what differs if a file was changed or replaced; ``None`` if there is none.

    These are its size, then device, inode and time on this machine, and elsewhere ETag and time.
    """
    return path.state() if isinstance(path, RemotePath) else files.file_state(path)
