"""Files kept between runs: ``$TOLPACK_CACHE``, else ``$XDG_CACHE_HOME/tolpack`` or
``~/.cache/tolpack``; ``TOLPACK_CACHE=off`` keeps none. They may be deleted at any time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

_VARIABLE = "TOLPACK_CACHE"


def cached_file(name: str) -> Path | None:
    """Return where the file `name` is kept, or ``None`` if nothing is."""
    chosen = os.environ.get(_VARIABLE)
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen) / name
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a process without a home
        return None
    return Path(home) / "tolpack" / name


def keep_file(path: Path, write: Callable[[IO[bytes]], object]) -> bool:
    """Have `write` write the file, whole or not at all; false if it could not be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                write(file)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        return False
    return True
