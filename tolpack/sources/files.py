"""Whole files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tolpack.errors import FileAccessError
from tolpack.runtime.files import open_stream


def file_digest(path: Path) -> bytes:
    """Return 32 bytes that depend on every byte of a file (SHA-256).

    Raises
    ------
    FileAccessError
        It cannot be read, or is no regular file.
    """
    try:
        with open_stream(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
