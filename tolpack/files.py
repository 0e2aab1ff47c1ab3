"""Regular files, opened without waiting.

A path from a stranger may name a FIFO, on which opening waits for ever, or a device that never
ends. Only regular files are opened here, whatever they are for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tolpack.errors import FileAccessError


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading; returns its descriptor, the caller's to close.

    Raises
    ------
    FileAccessError
        It is missing, unreadable or no regular file, or the path is none.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    fd = -1
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        reason = "not a regular file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if fd >= 0:
        os.close(fd)
    raise FileAccessError(f"cannot open {path}: {reason}")
