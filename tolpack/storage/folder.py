"""`Folder`: files under plain names, on this machine or in object storage.

A file appears whole or not at all. Nothing is changed in place: a file is put, perhaps in place of
another, or created, which fails where one is already. That is what object storage can promise, so
it is all that is asked of a folder.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tolpack.errors import ConfigError, FileAccessError

# No separators, no "..", nothing hidden.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")


class AlreadyExistsError(FileAccessError):
    """A file was to be created, and there is one of its name."""


class NoSuchFileError(FileAccessError):
    """A file was to be read, and there is none of its name."""


class Folder(ABC):
    """See the module. Safe to use from several threads.

    All methods raise `FileAccessError` if the storage cannot be reached or does not allow it.

    Attributes
    ----------
    location : str
        Path or URL, without credentials, for messages; `open_folder` opens it again.
    is_remote : bool
        Whether a read waits for a network.
    is_durable : bool
        Whether a file that was put outlives a loss of power; else it may be damaged by one.
    """

    location: str
    is_remote: bool = False
    is_durable: bool = True

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files, in order; none if the folder does not exist."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the bytes of a file; ``None`` if there is none."""

    @abstractmethod
    def read_many(self, name: str, extents: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return extents of a file, each an offset and a length in bytes.

        Raises
        ------
        FileAccessError
            Also if the file is shorter; `NoSuchFileError` if there is none.
        """

    @abstractmethod
    def temporary(self) -> AbstractContextManager[Path]:
        """Make an empty local file, from which `put` is cheap, and yield its path; it is removed at
        the end.
        """

    @abstractmethod
    def put(self, name: str, file: Path) -> None:
        """Store the content of a local file under `name`, in place of what is there; the local file
        may be gone afterwards.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Store `data` under `name`.

        Raises
        ------
        AlreadyExistsError
            There is a file of this name; of several creators one succeeds.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; it may be gone already."""

    def state(self, name: str) -> tuple[Any, ...] | None:
        """Return what differs if a file was changed or replaced, its size first; ``None`` if there
        is none.
        """
        size = self.size(name)
        return None if size is None else (size,)

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """Return `length` bytes of a file at `offset`; errors as of `read_many`."""
        return self.read_many(name, [(offset, length)])[0]

    def read_whole(self, name: str, most_bytes: int) -> bytes:
        """Return the content of a file.

        Raises
        ------
        FileAccessError
            It is longer than `most_bytes`; `NoSuchFileError`: there is none.
        """
        size = self.size(name)
        if size is None:
            raise NoSuchFileError(f"{self.file_location(name)} does not exist")
        if size > most_bytes:
            raise FileAccessError(
                f"{self.file_location(name)} holds {size:,} bytes, expected at most {most_bytes:,}"
            )
        return bytes(self.read(name, 0, size)) if size else b""

    def file_location(self, name: str) -> str:
        """Return the path or URL of a file."""
        return f"{self.location.rstrip('/')}/{name}"


def check_name(name: str) -> str:
    """Return `name` if it is the plain name of a file; raise `ConfigError` if it is not."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} does not name a file: use letters, digits, '.', '_', '-'")
    return name
