"""Files that take their final name only when they are complete.

They are written under another name in the same folder, then synced and renamed, and the folder is
synced. The final name shows the old file or the new one, never a part of it.

Only files of our own are written to: newly created ones, or a regular file that an interrupted
build left, known by its first bytes. None is opened through a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from shutil import disk_usage
from typing import BinaryIO

from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.files import sync, sync_folder

# No room on the disk, in the quota, or in a file of this file system or process.
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_WRITABLE = "name a file in a folder that can be written"


def check_output(path: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse an output by which something would be lost.

    Raises
    ------
    ConfigError
        It is not a possible name, a folder, a device, pipe or socket, or one of the `inputs`.
    """
    if "\0" in str(path):
        raise ConfigError(f"output {str(path)!r} holds a NUL character: give another name")
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder: give a file name")
    if path.exists() and not path.is_file():
        raise ConfigError(f"output {path} is not a regular file: give the name of a file")
    if any(same_file(path, one) for one in inputs if one is not None):
        raise ConfigError(f"output {path} is one of the inputs: give another name")


def check_writable(path: Path) -> None:
    """Create a nameless file beside `path`: whether that is allowed is known only by trying.

    Raises
    ------
    FileAccessError
        It cannot be created.
    """
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = error.strerror or error
        raise FileAccessError(f"cannot write {path}: {reason}: {_WRITABLE}") from error


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise `ConfigError` if there is something of the output's name, unless `force` is given."""
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{path} exists: use --force to replace it, or another name")


def same_file(path: str | Path, other: str | Path) -> bool:
    """Whether both are there and are one file, by whatever names or links."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def replacing(path: Path, size: int = 0, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield an empty file that gets the name `path` if the block ends without an error.

    Otherwise it is removed, and what had the name keeps it. Until then it is ``NAME.partial``,
    which must not be there.

    Parameters
    ----------
    path : Path
        Final name.
    size : int
        Bytes that the file will take, about: a disk too small is noticed before the work.
    replace : bool
        Whether a file that has the final name by then is replaced.

    Raises
    ------
    ConfigError
        As `check_output`.
    FileAccessError
        The folder is not writable, the disk is full, or ``NAME.partial`` is there, because another
        process writes the same file, or one that was killed did.
    """
    check_output(path)
    try:
        missing = size - disk_usage(path.parent).free
        if missing > 0:
            raise FileAccessError(
                f"{path} would take {size:,} bytes, and its disk lacks {missing:,} of them: free "
                "some space, or write elsewhere"
            )
        partial = partial_path(path)
        file = take_over(partial)
        try:
            yield file
            publish(file, partial, path, replace=replace)
        except BaseException:
            remove(file, partial)
            raise
    except FileAccessError:
        raise
    except OSError as error:
        full = error.errno in DISK_FULL
        hint = "free some space, or write elsewhere" if full else _WRITABLE
        reason = os.strerror(error.errno) if error.errno else error
        raise FileAccessError(f"cannot write {path}: {reason}: {hint}") from error


def partial_path(path: Path) -> Path:
    """Return the name of a file that is not complete."""
    return path.with_name(path.name + ".partial")


def take_over(path: Path, marker: bytes = b"", *, known: bool = False) -> BinaryIO:
    """Create a file, or open the one that an interrupted writer left, and lock it until it is
    closed.

    Parameters
    ----------
    path : Path
        Its name.
    marker : bytes
        First bytes of a file of ours, unless it is shorter; without a marker only an empty file
        is known.
    known : bool
        Whether it is one of ours whatever it holds.

    Raises
    ------
    FileAccessError
        Another process writes it, or another kind of file is there, which is not changed.
    OSError
        It cannot be opened or created.
    """
    try:
        # The caller closes it.
        file: BinaryIO = open(path, "x+b", opener=_without_links)  # noqa: SIM115
    except FileExistsError:
        file = _existing(path)
    try:
        _lock(file, path)
        if not known and not _begins_with(file, marker):
            raise _in_the_way(path)
    except BaseException:
        close(file)
        raise
    return file


def lock_leftover(path: Path) -> BinaryIO | None:
    """Open and lock a file that an interrupted writer left; the caller closes it.

    ``None`` if it is gone, if another kind of file is there, or if a process writes it.
    """
    try:
        file = _existing(path)
    except OSError:
        return None
    try:
        _lock(file, path)
    except FileAccessError:
        close(file)
        return None
    return file


def close(file: BinaryIO) -> None:
    """Close a file of which nothing more is wanted; what cannot be written must not hide why."""
    with contextlib.suppress(OSError):
        file.close()


def is_leftover(path: Path, marker: bytes) -> bool:
    """Whether a regular file is there that begins with `marker`; nobody waits for a lock."""
    try:
        with _existing(path) as file:
            return os.fstat(file.fileno()).st_size > 0 and _begins_with(file, marker)
    except OSError:
        return False


def _begins_with(file: BinaryIO, marker: bytes) -> bool:
    """Whether a file begins with `marker`, or is empty or cut off within it."""
    start = file.read(max(len(marker), 1))
    file.seek(0)
    return marker.startswith(start)


def _existing(path: Path) -> BinaryIO:
    """Open a regular file that has no other name, and is not a link."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise _in_the_way(path)
    return open(path, "r+b", opener=_without_links)


def _without_links(name: str, flags: int) -> int:
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(name, flags, 0o666)  # what open() gives a new file


def _in_the_way(path: Path) -> FileAccessError:
    return FileAccessError(
        f"{path} is in the way, and no file that could be continued: rename it, or remove it if a "
        "process that was killed left it, or write to another name"
    )


def publish(file: BinaryIO, partial: Path, path: Path, *, replace: bool = True) -> None:
    """Sync and close a file, and give it its final name.

    Raises
    ------
    FileAccessError
        Another file has taken its place, or, without `replace`, its final name.
    """
    sync(file)
    if not os.path.samestat(os.fstat(file.fileno()), os.lstat(partial)):
        raise FileAccessError(f"{partial} is another file by now: write {path} again")
    if not replace and os.path.lexists(path):
        raise FileAccessError(
            f"{path} has appeared while it was written: use --force to replace it, or another name"
        )
    if os.name == "nt":  # an open file cannot be renamed there; elsewhere it stays locked
        file.close()
    os.replace(partial, path)
    file.close()
    sync_folder(path.parent)


def begin_writeback(file: BinaryIO, offset: int, length: int) -> None:
    """Let the system write these bytes to the disk now, so that a later `sync` has less to wait
    for; a hint.
    """
    if hasattr(os, "posix_fadvise"):
        # Nothing else asks for this; Linux writes dirty pages before it would drop clean ones.
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def remove(file: BinaryIO, partial: Path) -> None:
    """Remove a file while it is open; what cannot be written any more must not hide why."""
    if os.name == "nt":  # an open file cannot be removed there
        close(file)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    close(file)


def _lock(file: BinaryIO, path: Path) -> None:
    """Refuse a second writer of the same file; the lock ends with the file's closing."""
    try:
        import fcntl
    except ImportError:  # Windows already refuses to open a file that is being written
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except OSError:
        ours = False
    if not ours:  # held by another process, or renamed by one between opening and locking
        raise FileAccessError(f"another process is writing {path}: wait for it to end")
