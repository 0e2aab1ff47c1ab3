"""A pack that is being written to a local file: ``NAME.partial``, its journal, and a rename.

After each section the data is synced and a line is added to the journal
(`tolpack.container.journal`). A writer that was killed and is started again with the same key finds
the finished sections there. `LocalSink.commit` syncs, renames to the final name and syncs the
folder: the final name never shows a half-written pack.

Until then the file begins with a marker of its own, by which a leftover is known. Another file of
that name is never written to, and no link is followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from shutil import disk_usage

from tolpack.container.atomic_write import (
    DISK_FULL,
    begin_writeback,
    check_output,
    close,
    is_leftover,
    partial_path,
    publish,
    remove,
    same_file,
    take_over,
)
from tolpack.container.byte_sink import ByteSink
from tolpack.container.header import Section
from tolpack.container.journal import Journal, has_journal, journal_path
from tolpack.container.preamble import MAGIC
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.array_types import Buffer
from tolpack.runtime.files import sync, sync_folder

# The first bytes of an unfinished pack, where a finished one has its magic.
_MARKER = b"\x89TOLPART"


def is_unfinished_pack(partial: Path) -> bool:
    """Whether ``NAME.partial`` is of a pack that was not finished: by its mark, or its journal."""
    return any(is_leftover(partial, mark) for mark in (_MARKER, MAGIC)) or has_journal(partial)


def check_unfinished(path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise `ConfigError` if one of `inputs` has a name that writing a pack to `path` needs."""
    partial = partial_path(path)
    for needed in (partial, journal_path(partial)):
        if any(one is not None and same_file(needed, one) for one in inputs):
            raise ConfigError(
                f"input {needed} has the name of what is written before {path} is complete: "
                "rename it, or use another -o"
            )


# Bytes that are written to the page cache before the disk begins to write them.
_WRITEBACK_BYTES = 8 << 20


class LocalSink(ByteSink):
    """See the module.

    Parameters
    ----------
    path : Path
        Final name. An existing file is replaced only by `commit`.
    key : str
        Names inputs and settings: what another key began is not continued.
    resume : bool
        Continue what an interrupted writer left. Without it a leftover is overwritten.
    replace : bool
        Whether a file that has the final name by `commit` is replaced.
    resumable : bool
        Whether whoever writes can continue later: messages say so.

    Raises
    ------
    ConfigError
        The leftover that `resume` would continue was made with another key, or the output is a
        folder, a device or the like.
    FileAccessError
        The folder is not writable, the disk is full, another process writes the same output, or a
        file that is not a leftover has the name of one.
    """

    def __init__(
        self, path: Path, key: str, *, resume: bool, replace: bool, resumable: bool = True
    ) -> None:
        check_output(path)
        self._path, self._partial = path, partial_path(path)
        self.name, self.resumes = str(self._partial), resume
        self._key, self._replace, self._resumable = key, replace, resumable
        self._expected, self._begun = 0, False
        self.finished: list[Section] = []
        with self._disk_errors():
            # Nothing of another is changed. Shortly before it gets its name it begins as a pack.
            known = has_journal(self._partial)
            self._file = take_over(self._partial, _MARKER, known=known)
        try:
            self._open_journal()
        except BaseException:
            close(self._file)
            raise

    def _open_journal(self) -> None:
        """Refuse to continue another key's pack before anything is computed for it."""
        with self._disk_errors():
            self._size = os.fstat(self._file.fileno()).st_size
            self._journal = Journal(self._partial, known=self._size > 0)
            try:
                if self.resumes and self._size:
                    self._journal.check_key(self._key)
            except BaseException:
                close(self._journal.file)
                raise

    def begin(self, attempt: int) -> None:
        """See `ByteSink`."""
        self._begun = True
        with self._disk_errors():
            if self.resumes and self._size:
                self.finished = self._journal.read(self._key, attempt)
            if self.finished and self.finished[-1].end_bytes > self._size:
                self.finished = []
            if self.finished:
                self._journal.keep(len(self.finished))
            else:
                self._start_again(attempt)
            sync_folder(self._partial.parent)  # a journal lost alone makes a leftover foreign

    def _start_again(self, attempt: int) -> None:
        self._journal.begin(self._key, attempt)
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(_MARKER)
        sync(self._file)

    def write(self, offset: int, parts: Iterable[Buffer]) -> int:
        """See `ByteSink`."""
        length = begun = 0
        with self._disk_errors():
            self._file.seek(offset)
            for part in parts:
                self._file.write(part)
                length += len(part)
                if length - begun >= _WRITEBACK_BYTES:
                    self._file.flush()
                    begin_writeback(self._file, offset + begun, length - begun)
                    begun = length
        return length

    def sync(self) -> None:
        """See `ByteSink`."""
        with self._disk_errors():
            sync(self._file)

    def note(self, section: Section) -> None:
        """See `ByteSink`."""
        with self._disk_errors():
            self._journal.append(section)
        self.finished.append(section)

    def forget(self, count: int) -> None:
        """See `ByteSink`."""
        del self.finished[count:]
        with self._disk_errors():
            self._journal.keep(count)

    def read(self, offset: int, length: int) -> bytes:
        """See `ByteSink`."""
        with self._disk_errors():
            self._file.seek(offset)
            return self._file.read(length)

    def expect(self, size: int) -> None:
        """See `ByteSink`. What was written stays for a later resume; nothing stays if that was
        nothing.
        """
        self._expected = size
        with self._disk_errors():
            missing = self._missing() - disk_usage(self._path.parent).free
        if missing <= 0:
            return
        hint = "and continue with --resume"
        if not (self.finished and self._resumable):
            self.discard()
            hint = "or build elsewhere with -o"
        raise FileAccessError(
            f"{self._path} would take {self._expected:,} bytes, and its disk lacks {missing:,} of "
            f"them: free some space {hint}"
        )

    def commit(self, size: int, start: bytes) -> None:
        """See `ByteSink`."""
        with self._disk_errors():
            self._file.truncate(size)
            self._file.seek(0)
            self._file.write(start)
            publish(self._file, self._partial, self._path, replace=self._replace)
            self._journal.remove()

    def discard(self) -> None:
        """See `ByteSink`."""
        self._journal.remove()
        remove(self._file, self._partial)

    def close(self, *, failed: bool) -> None:
        """See `ByteSink`."""
        if not self._begun and not self._size:
            with contextlib.suppress(OSError):
                self.discard()
        if failed:
            close(self._file)
        close(self._journal.file)  # each of its lines is on the disk
        with self._disk_errors():
            self._file.close()

    def _missing(self) -> int:
        """Bytes that were announced and are not in the file yet."""
        try:
            return self._expected - self._partial.stat().st_size
        except OSError:  # not even its name could be made
            return self._expected

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except FileAccessError:
            raise
        except OSError as error:
            hint = ""
            if error.errno in DISK_FULL:
                missing = self._missing()
                needed = f"{missing:,} more bytes are needed: " if missing > 0 else ""
                then = "and continue with --resume" if self._resumable else "or write elsewhere"
                hint = f"; {needed}free some space {then}"
            raise FileAccessError(
                f"cannot write {self._partial}: {error.strerror or error}{hint}"
            ) from error
