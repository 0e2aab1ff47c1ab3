"""Which sections of an unfinished pack are complete: a line of JSON each, beside it.

The first line names the build that began the pack; a line is added once its section is on the
disk. So after a kill at any moment the lines that are whole tell what need not be written again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from tolpack.codecs.encodings import CoderSettings
from tolpack.container.atomic_write import is_leftover, remove, take_over
from tolpack.container.header import Section
from tolpack.errors import ConfigError
from tolpack.runtime.files import sync

_MARKER = b'{"key": "'


class Journal:
    """The journal of ``NAME.partial``, ``NAME.partial.journal``; open until its ``file`` is closed.

    Parameters
    ----------
    partial : Path
        The unfinished pack, locked by its writer.
    known : bool
        Whether it holds anything: a journal beside it is then its own.

    Raises
    ------
    FileAccessError
        Another process writes it, or a file of its name is none.
    OSError
        It cannot be opened.
    """

    def __init__(self, partial: Path, *, known: bool) -> None:
        self._partial = partial
        self._path = journal_path(partial)
        self.file = take_over(self._path, _MARKER, known=known)
        self._ends: list[int] = []

    def read(self, key: str, attempt: int) -> list[Section]:
        """Return the finished sections, none if there is nothing to continue.

        Raises
        ------
        ConfigError
            The pack was begun with another key.
        """
        self._ends = []
        self.file.seek(0)
        lines = self.file.read().splitlines(keepends=True)
        begun = self._begun(lines, key)
        return self._sections(lines) if begun == attempt else []

    def check_key(self, key: str) -> None:
        """Raise `ConfigError` if the pack was begun with another key."""
        self.file.seek(0)
        self._begun(self.file.readlines(), key)

    def begin(self, key: str, attempt: int) -> None:
        """Start again: no section is finished."""
        self._ends = []
        self._cut(0)
        self._write({"key": key, "attempt": attempt})

    def append(self, section: Section) -> None:
        """Note that `section`, which is on the disk, is finished."""
        self._write(asdict(section))

    def keep(self, count: int) -> None:
        """Forget all sections but the first `count`, and what follows them."""
        self._ends = self._ends[: count + 1]
        self._cut(self._ends[-1])

    def remove(self) -> None:
        """Remove the file."""
        remove(self.file, self._path)

    def _begun(self, lines: list[bytes], key: str) -> int | None:
        """Attempt of the first line; ``None`` if a kill left none, so that nothing is continued."""
        try:
            first = json.loads(lines[0])
            found, attempt = first["key"], first["attempt"]
        except (ValueError, LookupError, TypeError):
            return None
        if found != key:
            raise ConfigError(
                f"{self._partial} was begun with other inputs or settings: repeat those, or build "
                "without --resume to start again"
            )
        return int(attempt)

    def _sections(self, lines: list[bytes]) -> list[Section]:
        """Sections by the lines that are whole; notes where each line ends."""
        sections: list[Section] = []
        self._ends = [len(lines[0])]
        for line in lines[1:]:
            try:
                if not line.endswith(b"\n"):
                    break  # cut off by the kill
                entry = json.loads(line)
                entry["shape"] = None if entry["shape"] is None else tuple(entry["shape"])
                coder = entry.get("coder")
                entry["coder"] = None if coder is None else CoderSettings(**coder)
                sections.append(Section(**entry))
            except (ValueError, KeyError, TypeError):
                break
            self._ends.append(self._ends[-1] + len(line))
        return sections

    def _write(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        at = self._ends[-1] if self._ends else 0
        self.file.seek(at)
        self.file.write(line)
        sync(self.file)
        self._ends.append(at + len(line))

    def _cut(self, length: int) -> None:
        self.file.truncate(length)
        os.fsync(self.file.fileno())


def has_journal(partial: Path) -> bool:
    """Whether a journal stands beside an unfinished pack."""
    return is_leftover(journal_path(partial), _MARKER)


def journal_path(partial: Path) -> Path:
    """Return the name of the journal of an unfinished pack."""
    return partial.with_name(partial.name + ".journal")
