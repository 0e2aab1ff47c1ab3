"""Files that results are written to, checked before hours of measuring."""

from __future__ import annotations

import os
from pathlib import Path

from tolpack.errors import FileAccessError


def check_output(path: Path | None) -> None:
    """Raise `FileAccessError` if `path` could not be written; replacing a file is fine."""
    if path is None:
        return
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {folder}"
        raise FileAccessError(f"cannot write {path}: {reason}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise FileAccessError(f"cannot write {path}: permission denied")
