"""SHA-256 hashes that stand beside downloaded files, and whether the files have them.

Three places are looked at. ``hf download --local-dir`` writes the hash that the server gave into
``.cache/huggingface/download/NAME.metadata``, as its second line. In the cache of ``hf download``
the name of a file is a link to a blob that is called by its hash. And a folder may have a
``SHA256SUMS`` of ``sha256sum``. Files that are not stored by LFS have a shorter hash, of another
kind, which is left out. Beside files elsewhere only ``SHA256SUMS`` is looked for.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from tolpack.errors import CheckpointError, FileAccessError
from tolpack.runtime.pool import processor_count
from tolpack.sources.identity import FileStates
from tolpack.storage.inputs import InputPath, read_whole
from tolpack.storage.remote_path import RemotePath

_HASH = re.compile(r"[0-9a-f]{64}")
# As sha256sum writes them, plainly and with --tag.
_LINES = (
    re.compile(r"(?P<hash>[0-9a-fA-F]{64}) [ *](?P<name>.+)"),
    re.compile(r"SHA256 \((?P<name>.+)\) = (?P<hash>[0-9a-fA-F]{64})"),
)
_METADATA = Path(".cache", "huggingface", "download")
_SUMS = "SHA256SUMS"
_MAX_METADATA, _MAX_SUMS = 64 << 10, 4 << 20
# Folders that are looked at, from the file's own upwards: a download may have put it in one below.
_MAX_DEPTH = 3
# Names that are written out.
_SHOWN = 3


class RecordedHashes:
    """The hashes that are recorded for some files.

    Parameters
    ----------
    states : FileStates
        The files as they were when opened, shared by all tables of a checkpoint.
    paths : iterable of Path or RemotePath
        Those that a table is read from.
    """

    def __init__(self, states: FileStates, paths: Iterable[InputPath]) -> None:
        paths = list(paths)
        sums = {folder: _read_sums(folder / _SUMS) for folder in {path.parent for path in paths}}
        self._states = states
        self._expected: dict[InputPath, dict[str, str]] = {}
        for path in paths:
            found = _recorded(path, sums[path.parent])
            if found:
                self._expected[path] = found
        listed = [path for path in paths if sums[path.parent] is not None]
        self._unlisted = [path for path in listed if _SUMS not in self._expected.get(path, {})]

    @property
    def files(self) -> tuple[InputPath, ...]:
        """The files that have a hash."""
        return tuple(self._expected)

    @property
    def nbytes(self) -> int:
        """Bytes of the files that have a hash, which `check` reads."""
        return sum(map(self._states.size, self._expected))

    def check(self, done: Callable[[int], object]) -> None:
        """Read the files, and compare their hashes with those that are recorded.

        `done` is called with the number of bytes read since the last call.

        Raises
        ------
        CheckpointError
            A file has another hash.
        """
        lock = threading.Lock()

        def read(size: int) -> None:
            with lock:
                done(size)

        with ThreadPoolExecutor(processor_count()) as pool:
            digests = pool.map(lambda path: self._states.digest(path, read), self._expected)
            for path, digest in zip(self._expected, digests):
                for place, expected in self._expected[path].items():
                    if digest.hex() != expected:
                        raise CheckpointError(
                            f"{path} has the SHA-256 {digest.hex()}, but {place} says {expected}: "
                            "it is damaged or another file; download it again, or remove that "
                            "record if you changed the file yourself"
                        )

    def describe(self) -> list[str]:
        """Return lines that say which files are compared, and which `_SUMS` leaves out."""
        lines = []
        if self._expected:
            places = sorted({place for found in self._expected.values() for place in found})
            named = ", ".join(places)
            lines.append(f"comparing with the SHA-256 of {named}: {_listed(self._expected)}")
        if self._unlisted:
            lines.append(f"{_SUMS} has no hash of {_listed(self._unlisted)}: not compared with it")
        return lines


def _listed(paths: Collection[InputPath]) -> str:
    more = len(paths) - _SHOWN
    names = ", ".join(path.name for path in list(paths)[:_SHOWN])
    return f"{names}{f' and {more} more' if more > 0 else ''}"


def _recorded(path: InputPath, sums: dict[str, str] | None) -> dict[str, str]:
    """Return the hashes recorded for a file, by the place where each stands."""
    found = {}
    if sums is not None and path.name in sums:
        found[_SUMS] = sums[path.name]
    if isinstance(path, RemotePath):
        return found
    for folder in list(path.parents)[:_MAX_DEPTH]:
        name = f"{path.relative_to(folder).as_posix()}.metadata"
        lines = _read(folder / _METADATA / name, _MAX_METADATA)
        if len(lines) > 1 and _HASH.fullmatch(lines[1].strip()):
            found[_METADATA.as_posix()] = lines[1].strip()
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and _HASH.fullmatch(target.name):
        found["the Hugging Face cache"] = target.name
    return found


def _read_sums(path: InputPath) -> dict[str, str] | None:
    """Return the hashes of a file by names without folders; ``None`` if there is no such file."""
    if not path.is_file():
        return None
    lines = _read(path, _MAX_SUMS)
    matches = (found for line in lines for one in _LINES if (found := one.fullmatch(line.strip())))
    return {PurePath(match["name"]).name: match["hash"].lower() for match in matches}


def _read(path: InputPath, most: int) -> list[str]:
    """Return the lines of a small text file; none if it is not there."""
    if not path.is_file():
        return []
    try:
        return read_whole(path, most).decode("utf-8", "replace").splitlines()
    except FileAccessError as error:
        raise CheckpointError(f"{error}: remove it if it is of no use") from error
