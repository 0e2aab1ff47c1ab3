"""Files that tolpack keeps on this machine: those of its cache, and what killed builds left.

=========== ==========================================================================
calibration loss metrics, so that the next build of a model need not measure them
measurement results of ``eval --sweep`` and ``study``
remote      extents of packs in object storage that were opened with ``disk_cache``
unfinished  files of the three kinds above whose writer was killed
partial     a build's ``NAME.partial`` with its journal and part files: ``--resume`` continues it
parts       part files in a folder that no manifest names
=========== ==========================================================================

Whoever writes a file holds its lock, and a file that is locked is in use. Part files and jobs have
no lock, and a build writes some before it locks its pack: they count as in use for an hour after
the last of them was written.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolpack.container import extent_cache
from tolpack.container.atomic_write import lock_leftover, partial_path
from tolpack.container.journal import has_journal, journal_path
from tolpack.container.local_sink import is_unfinished_pack
from tolpack.container.parts.parts_sink import named_files
from tolpack.errors import TolpackError
from tolpack.runtime.disk_cache import KEPT_NAMES, UNFINISHED, cached_file
from tolpack.storage.local_folder import LocalFolder
from tolpack.workspace.jobs import PARTS_SUFFIX, is_build_file, parts_folder

CACHE_KINDS = ("calibration", "measurement", "remote", "unfinished")
KINDS = (*CACHE_KINDS, "partial", "parts")
_IN_USE_SECONDS = 3600.0
_PARTIAL, _JOURNAL = partial_path(Path("x")).suffix, ".partial.journal"


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A kept file, or several that belong together: ``path`` names them all.

    ``bytes`` is their size together, ``modified`` when the last of them was written, in seconds
    since 1970. ``locked`` are those of them that a process which uses them has locked.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    bytes: int
    modified: float
    locked: tuple[Path, ...] = ()

    @property
    def in_use(self) -> bool:
        """Whether a running process writes it, or may."""
        if self._may_be_written:
            return True
        with ExitStack() as stack:
            return not _lock_all(self.locked, stack)

    @property
    def _may_be_written(self) -> bool:
        """Whether files that nobody locks were written so lately that a build may still run."""
        unlocked = self.kind == "parts" or any(_is_of_parts(file) for file in self.files)
        return unlocked and self.age_seconds < _IN_USE_SECONDS

    @property
    def age_seconds(self) -> float:
        """Seconds since it was written."""
        return max(0.0, time.time() - self.modified)

    def remove(self) -> bool:
        """Remove the files, unless they are in use; returns whether they are gone."""
        if self._may_be_written:
            return False
        with ExitStack() as stack:
            if not _lock_all(self.locked, stack):
                return False
            for file in self.files:
                try:
                    file.unlink(missing_ok=True)
                except OSError:
                    return False
        for folder in {file.parent for file in self.files if _is_of_parts(file)}:
            with contextlib.suppress(OSError):  # something else is there
                folder.rmdir()
        return True

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "kind": self.kind, "path": str(self.path), "files": list(map(str, self.files)),
            "bytes": self.bytes, "age_seconds": self.age_seconds, "in_use": self.in_use,
        }  # fmt: skip


def cache_folder() -> Path | None:
    """Return the folder of the cache, or ``None`` if nothing is kept."""
    path = cached_file("name")
    return None if path is None else path.parent


def find_kept(folders: Sequence[Path] = ()) -> list[KeptFile]:
    """Find the files of the cache, and what builds left in `folders`; by kind, the newest first."""
    cache = cache_folder()
    found = [] if cache is None else list(_of_cache(cache))
    for folder in dict.fromkeys(folders):
        found += [*_of_builds(folder), *_of_parts(folder)]
    return sorted(found, key=lambda one: (KINDS.index(one.kind), -one.modified))


def _of_cache(cache: Path) -> Iterator[KeptFile]:
    for kind, (begin, end) in KEPT_NAMES.items():
        name = re.compile(f"{re.escape(begin)}[0-9a-f]{{32}}{re.escape(end)}")
        for path in _names(cache):
            if name.fullmatch(path.name):
                yield from _kept(kind, [path])
    for path in _names(cache):
        if path.name.startswith(UNFINISHED):
            yield from _kept("unfinished", [path], [path])
    for path in _names(cache / extent_cache.FOLDER):
        if re.fullmatch(f"[0-9a-f]{{32}}{re.escape(extent_cache.BYTES_SUFFIX)}", path.name):
            entries = path.with_suffix(extent_cache.ENTRIES_SUFFIX)
            yield from _kept("remote", [path, entries], [path])


def _of_builds(folder: Path) -> Iterator[KeptFile]:
    """Yield what unfinished packs of the outputs in a folder consist of."""
    for output in _outputs(folder):
        partial = partial_path(output)
        journal, parts = journal_path(partial), parts_folder(output)
        files = [partial] if is_unfinished_pack(partial) else []
        files += [journal] if has_journal(partial) else []
        if not files and _is_empty(partial) and _is_empty(journal):  # killed before its first line
            files = [partial, journal]
        if not parts.is_symlink() and not named_in(parts):  # a link leads to another folder
            files += [path for path in _names(parts) if is_build_file(path.name)]
        yield from _kept("partial", files, [partial, journal])


def _is_of_parts(file: Path) -> bool:
    return file.parent.suffix == PARTS_SUFFIX


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _outputs(folder: Path) -> list[Path]:
    """Return the final names of what may be unfinished in a folder."""
    found: dict[Path, None] = {}
    for ending in (_JOURNAL, _PARTIAL, PARTS_SUFFIX):
        for path in _entries(folder):
            if path.name.endswith(ending) and path.name != ending:
                found[path.with_name(path.name.removesuffix(ending))] = None
    return sorted(found)


def _of_parts(folder: Path) -> Iterator[KeptFile]:
    """Yield the files of a folder of parts that its manifest does not name."""
    named = named_in(folder)
    if folder.suffix != PARTS_SUFFIX:
        paths = [p for p in _names(folder) if is_build_file(p.name) and p.name not in named]
        yield from _kept("parts", paths, place=folder)


def named_in(folder: Path) -> set[str]:
    """Return the files that a manifest names; every file of the folder, if it cannot be read."""
    try:
        return named_files(LocalFolder(folder))
    except TolpackError:
        return {path.name for path in _names(folder)}


def _kept(
    kind: str, paths: Iterable[Path], locked: Iterable[Path] = (), place: Path | None = None
) -> Iterator[KeptFile]:
    """Yield what the regular files among `paths` make up, if there is any."""
    found: dict[Path, os.stat_result] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode):
                found[path] = state
    if found:
        files, states = tuple(found), found.values()
        yield KeptFile(
            kind, place or files[0], files, sum(one.st_size for one in states),
            max(one.st_mtime for one in states), tuple(p for p in locked if p in found),
        )  # fmt: skip


def _names(folder: Path) -> list[Path]:
    """Return the files of a folder, without links; none if it cannot be listed."""
    return [path for path in _entries(folder) if not (path.is_dir() or path.is_symlink())]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _lock_all(paths: Iterable[Path], stack: ExitStack) -> bool:
    """Lock files until `stack` is closed; false if a process has one of them locked."""
    for path in paths:
        file = lock_leftover(path)
        if file is None and path.exists():
            return False
        if file is not None:
            stack.callback(file.close)
    return True
