"""Locations: paths of this machine, or URLs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tolpack.errors import ConfigError
from tolpack.storage.folder import Folder
from tolpack.storage.local_folder import LocalFolder

# A path, or a URL as text. A URL is never made a Path, which would join its slashes.
Location = str | Path

# What a `Path` makes of the beginning of a URL.
_JOINED = re.compile(r"(?i:s3a?|gs|az|azure|adl|abfss?|memory|https?|file):")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(location: Location) -> bool:
    """Whether a location is a URL, also a ``file://`` one."""
    return isinstance(location, str) and _URL.match(location) is not None


def local_path(location: Location) -> Path | None:
    """Return the path of a location on this machine; ``None`` if it is elsewhere.

    Raises
    ------
    ConfigError
        A ``file://`` URL names another machine, or a URL was made a `Path`.
    """
    if not is_url(location):
        path = Path(location)
        if path.parts[:1] and _JOINED.fullmatch(path.parts[0]):
            raise ConfigError(f"{path} was a URL, and a Path joins its slashes: give it as text")
        return path
    parts = urlsplit(os.fspath(location))
    if parts.scheme.lower() != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(
            f"{without_credentials(location)} names a file of another machine: write file:///PATH"
        )
    return Path(unquote(parts.path))


def without_credentials(location: Location) -> str:
    """Return a location for messages: a URL without user, password, query and fragment."""
    if not is_url(location):
        return str(location)
    scheme, _, rest = str(location).partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def open_folder(location: Location) -> Folder:
    """Open the folder of a path or URL, which need not exist.

    Raises
    ------
    ConfigError
        The kind of URL is unknown, or needs a library that is not installed.
    """
    path = local_path(location)
    if path is not None:
        return LocalFolder(path)
    from tolpack.storage.remote_folder import RemoteFolder

    return RemoteFolder(str(location))


def split_location(location: Location) -> tuple[Location, str]:
    """Return the folder of a file's location, and the file's name in it."""
    if not is_url(location):
        path = Path(location)
        return path.parent, path.name
    folder, _, name = str(location).rpartition("/")
    return folder, name
