"""Regular files, opened without waiting, and what was written to them brought to the disk.

A path from an untrusted source may name a FIFO, on which opening waits for ever, or a device that
never ends. Only regular files are opened here, whatever they are for.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from tolpack.errors import FileAccessError


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading; returns its descriptor, the caller's to close.

    Raises
    ------
    FileAccessError
        It is missing, unreadable or no regular file, or the path is none; ``strerror`` says why.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    fd, cause = -1, None
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        reason = "not a regular file"
    except (OSError, ValueError) as error:
        reason, cause = getattr(error, "strerror", None) or str(error), error
    if fd >= 0:
        os.close(fd)
    raise _refusal(path, reason) from cause


def open_stream(path: str | Path) -> BufferedReader:
    """Open a regular file as a stream of bytes; see `open_regular`."""
    return os.fdopen(open_regular(path), "rb")


def regular_size(path: str | Path) -> int:
    """Return the size in bytes of a file that a library is going to open by its path.

    Raises
    ------
    FileAccessError
        See `open_regular`.
    """
    fd = open_regular(path)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def is_json(path: str | Path) -> bool:
    """Whether a file begins as a JSON object without white space before it.

    Raises
    ------
    FileAccessError
        See `open_regular`.
    """
    with open_stream(path) as file:
        return file.read(1) == b"{"


def read_whole(path: str | Path, most_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises
    ------
    FileAccessError
        See `open_regular`; also if it is longer than `most_bytes`.
    """
    with open_stream(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise _refusal(path, f"{size:,} bytes, expected at most {most_bytes:,}")
        try:
            return file.read(size)
        except OSError as error:
            raise _refusal(path, error.strerror or str(error)) from error


def file_state(path: str | Path) -> tuple[int, ...] | None:
    """Return what differs if a file was changed or replaced: its size, device, inode and time.

    ``None`` if there is none.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns


def sync(file: BinaryIO) -> None:
    """Have everything written reach the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names of files in a folder reach the disk."""
    if os.name == "nt":  # a folder cannot be opened there; the rename is durable on its own
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(path: str | Path, reason: str) -> FileAccessError:
    error = FileAccessError(f"cannot open {path}: {reason}")
    error.strerror = reason
    return error
