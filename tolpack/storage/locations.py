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
            url = str(path).replace(":/", "://", 1)
            raise ConfigError(
                f"{path} is a URL with one slash: write {url}, and give it as text, as a Path "
                "joins its slashes"
            )
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


def absolute(location: Location) -> str:
    """Return a location that means the same in another working folder: path or URL."""
    path = local_path(location)
    return str(location) if path is None else os.path.abspath(path)


def open_folder(location: Location) -> Folder:
    """Open the folder of a path or URL, which need not exist.

    Raises
    ------
    ConfigError
        The kind of URL is unknown, has a query or a password, or needs a library that is not
        installed.
    """
    path = local_path(location)
    if path is not None:
        return LocalFolder(path)
    from tolpack.storage.remote_folder import RemoteFolder

    return RemoteFolder(plain_url(str(location)))


def split_location(location: Location) -> tuple[Location, str]:
    """Return the folder of a file's location, and the file's name in it.

    Raises
    ------
    ConfigError
        A URL that names no file, or has a query or a password.
    """
    path = local_path(location)
    if path is not None:
        return path.parent, path.name
    scheme, _, rest = plain_url(str(location)).partition("://")
    folder, slash, name = rest.rpartition("/")
    if not slash or not (folder or scheme.lower() == "memory"):
        raise ConfigError(f"{location} names no file: expected {scheme}://BUCKET/NAME")
    if scheme.lower() in ("http", "https"):
        name = unquote(name)
    return f"{scheme}://{folder}", name


def plain_url(url: str) -> str:
    """Return a URL that holds nothing secret, as it is going to be shown.

    Raises
    ------
    ConfigError
        It has a password or a user, or a query.
    """
    parts = urlsplit(url)
    container = parts.scheme.lower() in ("abfs", "abfss")  # container@account
    if parts.password or (parts.username and not container):
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ConfigError(
            f"{shown} holds credentials, which would be shown: set the variables of the storage, "
            "such as AWS_ACCESS_KEY_ID, instead"
        )
    if parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
        raise ConfigError(f"{shown}?… has a query, which is not supported: name the object alone")
    return url
