"""Files that take their final name only when they are complete.

They are written as ``NAME.partial`` in the same folder, under a lock, then synced and renamed, and
the folder is synced. The final name shows the old file or the new one, never a part of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage
from typing import BinaryIO

from tolpack.errors import FileAccessError

# No room on the disk, in the quota, or in a file of this file system or process.
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[BinaryIO]:
    """Yield an empty file that gets the name `path` if the block ends without an error.

    Otherwise it is removed, and what had the name keeps it.

    Parameters
    ----------
    path : Path
        Final name.
    size : int
        Bytes that the file will take, about: a disk too small is noticed before the work.

    Raises
    ------
    FileAccessError
        The folder is not writable, the disk is full, or another process writes the same file.
    """
    partial = partial_path(path)
    try:
        missing = size - disk_usage(path.parent).free
        if missing > 0:
            raise FileAccessError(
                f"{path} would take {size:,} bytes, and its disk lacks {missing:,} of them: free "
                "some space, or write elsewhere"
            )
        file = open_locked(partial)
        try:
            file.truncate(0)
            yield file
            publish(file, partial, path)
        except BaseException:
            _remove(file, partial)
            raise
    except FileAccessError:
        raise
    except OSError as error:
        hint = ": free some space, or write elsewhere" if error.errno in DISK_FULL else ""
        reason = os.strerror(error.errno) if error.errno else error
        raise FileAccessError(f"cannot write {path}: {reason}{hint}") from error


def partial_path(path: Path) -> Path:
    """Return the name of a file that is not complete."""
    return path.with_name(path.name + ".partial")


def open_locked(partial: Path) -> BinaryIO:
    """Open a file for reading and writing, whatever it holds, and lock it until it is closed.

    Raises
    ------
    FileAccessError
        Another process writes it.
    OSError
        It cannot be opened.
    """
    file = open(partial, "r+b", opener=_create)  # noqa: SIM115 (the caller closes it)
    _lock(file, partial)
    return file


def _create(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CREAT, 0o666)


def publish(file: BinaryIO, partial: Path, path: Path) -> None:
    """Sync and close a locked file, and give it its final name."""
    sync(file)
    if os.name == "nt":  # an open file cannot be renamed there; elsewhere it stays locked
        file.close()
    os.replace(partial, path)
    file.close()
    _sync_folder(path.parent)


def sync(file: BinaryIO) -> None:
    """Have everything written reach the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there; the rename is durable on its own
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(file: BinaryIO, partial: Path) -> None:
    """Remove a file while it is locked; what cannot be written any more must not hide why."""
    if os.name == "nt":  # an open file cannot be removed there
        with contextlib.suppress(OSError):
            file.close()
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    """Refuse a second writer of the same file; the lock ends with the file's closing."""
    try:
        import fcntl
    except ImportError:  # Windows already refuses to open a file that is being written
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        ours = False
    if not ours:  # held by another process, or renamed by one between opening and locking
        file.close()
        raise FileAccessError(f"another process is writing {path}: wait for it to end")
