"""A folder of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tolpack.errors import FileAccessError
from tolpack.runtime.files import file_state, open_regular, sync, sync_folder
from tolpack.storage.folder import AlreadyExistsError, Folder, NoSuchFileError, check_name

# Names of files that are being written begin so; what a killed process left is nothing to anyone.
UNFINISHED = ".unfinished-"


class LocalFolder(Folder):
    """See `Folder`. It is made when the first file is written; hidden files are unfinished ones.

    Parameters
    ----------
    path : Path
        The folder.
    is_durable : bool
        Whether to wait until files that were put are on the disk.
    """

    def __init__(self, path: Path, *, is_durable: bool = True) -> None:
        self.path, self.is_durable = path, is_durable
        self.location = str(path)

    def names(self) -> list[str]:
        """See `Folder`."""
        with self._errors("list"):
            if not self.path.exists():
                return []
            return sorted(
                one.name for one in self.path.iterdir() if one.is_file() and one.name[0] != "."
            )

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        try:
            found = os.stat(self.path / check_name(name))
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def state(self, name: str) -> tuple[int, ...] | None:
        """See `Folder`: size, device, inode and time."""
        return file_state(self.path / check_name(name))

    def read_many(self, name: str, extents: Sequence[tuple[int, int]]) -> list[memoryview]:
        """See `Folder`."""
        path = self.path / check_name(name)
        if not os.path.lexists(path):
            raise NoSuchFileError(f"{path} does not exist")
        fd = open_regular(path)
        try:
            with self._errors(f"read {name} in"):
                return [_pread(fd, offset, length, self.path / name) for offset, length in extents]
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """See `Folder`: a hidden file of this folder."""
        path = self.path / f"{UNFINISHED}{uuid.uuid4().hex}"
        with self._errors("write to"):
            self.path.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def put(self, name: str, file: Path) -> None:
        """See `Folder`: a file of this folder is renamed."""
        with self._errors(f"write {name} to"):
            if file.parent != self.path:
                with self.temporary() as copy:
                    shutil.copyfile(file, copy)
                    self.put(name, copy)
                return
            if self.is_durable:
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(file, self.path / check_name(name))
            if self.is_durable:
                sync_folder(self.path)

    def create(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        path = self.path / check_name(name)
        with self.temporary() as temporary, self._errors(f"write {name} to"):
            with open(temporary, "wb") as target:
                target.write(data)
                sync(target)
            try:
                os.link(temporary, path)  # fails where the name is taken, unlike a rename
            except FileExistsError as error:
                raise AlreadyExistsError(f"{path} exists") from error
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
                _create_exclusively(path, data)  # a file system without links
            sync_folder(self.path)

    def delete(self, name: str) -> None:
        """See `Folder`."""
        with self._errors(f"remove {name} from"):
            (self.path / check_name(name)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileAccessError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise FileAccessError(f"cannot {doing} folder {self.path}: {reason}") from error


def _pread(fd: int, offset: int, length: int, path: Path) -> memoryview:
    data = bytearray()
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise FileAccessError(
                f"{path} ends at byte {offset + len(data)}, expected {offset + length} bytes"
            )
        data += more
    return memoryview(data).toreadonly()


def _create_exclusively(path: Path, data: bytes) -> None:
    """Write a file under its final name; a reader may see it unfinished, a creator never twice."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            sync(file)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists") from error
