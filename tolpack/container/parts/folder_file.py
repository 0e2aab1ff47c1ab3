"""A file of a folder as a `ByteSource`, for whoever makes part files: on this machine or remote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tolpack.container.byte_source import ByteSource, Extent, truncated
from tolpack.errors import FileAccessError
from tolpack.storage.folder import Folder


class FolderFile(ByteSource):
    """See the module. Every read asks the folder; nothing is kept open.

    Parameters
    ----------
    folder : Folder
        Where it is.
    name : str
        Its name.

    Raises
    ------
    FileAccessError
        There is no such file.
    """

    mode: ClassVar[str] = "folder"

    def __init__(self, folder: Folder, name: str) -> None:
        size = folder.size(name)
        if size is None:
            raise FileAccessError(f"{folder.file_location(name)} does not exist")
        self.size, self.is_remote = size, folder.is_remote
        self._folder, self._name = folder, name
        super().__init__()

    def read_many(self, extents: Sequence[Extent]) -> Sequence[bytes | memoryview]:
        """See `ByteSource`."""
        for offset, length in extents:
            if offset + length > self.size:
                raise truncated(offset, length, self.size)
        return self._folder.read_many(self._name, extents)

    def _release(self) -> None:
        """See `ByteSource`: nothing is open."""
