"""`RemotePath`: a file or folder that a URL names, with what inputs need of `pathlib.Path`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from tolpack.storage.locations import plain_url
from tolpack.storage.remote_folder import RemoteFolder

# Servers of HTTP list nothing, so a folder there is what has one of these.
HTTP_NAMES = (
    "model.safetensors.index.json", "model.safetensors", "config.json", "tokenizer.json",
)  # fmt: skip


class RemotePath:
    """A file or folder of object storage, or of a server of HTTP.

    Its methods do what those of the same name of `pathlib.Path` do, and ask the server each time.
    They raise `FileAccessError` if it cannot be reached, or does not allow it.

    Parameters
    ----------
    url : str
        ``s3://``, ``gs://``, ``az://``, ``memory://`` or ``http(s)://``.

    Raises
    ------
    ConfigError
        It holds a password, a query or a fragment; what uses it refuses kinds that are unknown.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = plain_url(url).partition("://")
        self._url = f"{scheme.lower()}://{rest.rstrip('/')}"

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path; the bucket or host if there is none."""
        return self._url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, with the dot."""
        stem, dot, last = self.name.rpartition(".")
        return dot + last if stem and last and not self._is_root else ""

    @property
    def stem(self) -> str:
        """The name without `suffix`."""
        return self.name.removesuffix(self.suffix)

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in; itself for a bucket or host."""
        return self if self._is_root else RemotePath(self._url.rpartition("/")[0])

    @property
    def is_http(self) -> bool:
        """Whether it is on a server of HTTP, which cannot list a folder."""
        return self._url.startswith(("http://", "https://"))

    @property
    def folder(self) -> RemoteFolder:
        """The folder that holds the file."""
        return _opened(str(self.parent))

    def state(self) -> tuple[Any, ...] | None:
        """Return `Folder.state` of the file."""
        return None if self._is_root else self.folder.state(self.name)

    def is_file(self) -> bool:
        """Whether it is a file."""
        exists = not self._is_root and self.folder.size(self.name) is not None
        return exists and not (self.is_http and self.is_dir())  # whose page some servers give

    def is_dir(self) -> bool:
        """Whether it is a folder that holds a file."""
        return bool(self._names())

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return self.is_file() or self.is_dir()

    def glob(self, pattern: str) -> list[RemotePath]:
        """Return the files of the folder whose names match `pattern`; on a server of HTTP, those
        of `HTTP_NAMES`.
        """
        return [self / name for name in self._names() if fnmatchcase(name, pattern)]

    @property
    def _is_root(self) -> bool:
        return "/" not in self._url.partition("://")[2]

    def _names(self) -> list[str]:
        folder = _opened(self._url)
        if not self.is_http:
            return folder.names()
        return [name for name in HTTP_NAMES if folder.size(name) is not None]


@lru_cache(maxsize=32)
def _opened(url: str) -> RemoteFolder:
    """Open a folder once: each has connections of its own."""
    return RemoteFolder(url)
