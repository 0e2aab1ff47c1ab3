"""Files kept between runs: ``$TOLPACK_CACHE``, else ``$XDG_CACHE_HOME/tolpack`` or
``~/.cache/tolpack``; ``TOLPACK_CACHE=off`` keeps none. They may be deleted at any time.

Each ends in a SHA-256 of its name and of all that stands before: a file that is damaged, cut off,
or another's under this name is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from tolpack.runtime.files import open_stream

_VARIABLE = "TOLPACK_CACHE"
# What is kept, by kind: how the names begin and end; between them stand 32 digits of a hash.
KEPT_NAMES = {"calibration": ("calibration-", ".metrics"), "measurement": ("measured-", ".json")}
# Names of files that are being written begin so.
UNFINISHED = ".tolpack-unfinished-"
_DIGEST_BYTES = 32
_COPY_BYTES = 1 << 20


def kept_name(kind: str, digest: str) -> str:
    """Return the name of a file of a kind of `KEPT_NAMES`; `digest` has 32 hex digits or more."""
    begin, end = KEPT_NAMES[kind]
    return f"{begin}{digest[:32]}{end}"


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
        with tempfile.NamedTemporaryFile(prefix=UNFINISHED, dir=path.parent, delete=False) as file:
            _lock(file.fileno())
            try:
                write(file)
                file.flush()
                file.seek(0)
                digest, end = _digest(path.name, file.file, None)
                file.seek(end)
                file.write(digest)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        return False
    return True


@contextmanager
def kept_file(path: Path) -> Iterator[tuple[BinaryIO, int] | None]:
    """Open what `keep_file` wrote, and yield it with the bytes that `write` wrote.

    Yields ``None`` if there is no such file, or if it is not as it was written.
    """
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(open_stream(path))
            size = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            digest, end = _digest(path.name, file, size)
            whole = end == size and file.read(_DIGEST_BYTES + 1) == digest
            file.seek(0)
        except OSError:
            whole = False
        yield (file, size) if whole else None


def _lock(fd: int) -> None:
    """Mark a file as being written, until it is closed, where the system has locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _digest(name: str, file: IO[bytes], size: int | None) -> tuple[bytes, int]:
    """Return a digest of `name` and of `size` bytes, or of all; and how many there were."""
    digest, end = hashlib.sha256(name.encode() + b"\0"), 0
    while size is None or end < size:
        data = file.read(_COPY_BYTES if size is None else min(_COPY_BYTES, size - end))
        if not data:
            break
        digest.update(data)
        end += len(data)
    return digest.digest(), end
