"""Checks of the files that results are written to, made before hours of measuring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tolpack.container.atomic_write import check_output
from tolpack.errors import ConfigError, FileAccessError


def check_output_file(
    path: Path | None, suffixes: Sequence[str], inputs: Sequence[str | Path]
) -> None:
    """Refuse a file that could not be written, or that is one of the inputs.

    Raises
    ------
    ConfigError
        The suffix is another one, or the file is an input.
    FileAccessError
        It cannot be written.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ConfigError(f"output {path} must end in {' or '.join(suffixes)}")
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        reason = f"there is no folder {folder}; make it, or name another"
        reason = "it is a folder; name a file" if path.is_dir() else reason
        raise FileAccessError(f"cannot write {path}: {reason}")
    check_output(path, inputs)
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise FileAccessError(f"cannot write {path}: permission denied")
