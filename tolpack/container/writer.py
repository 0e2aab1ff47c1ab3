"""Writing a pack: atomically, section by section, resumable after a kill.

Sections go into ``NAME.partial`` in the folder of the output. After each one the data is synced
and a line is added to its journal (`tolpack.container.journal`); a build that was killed and is
started again with the same key finds the finished sections there and repeats only the one that was
cut off. `commit` writes the header into the room kept at the front, syncs, renames to the final
name and syncs the folder: the final name never shows a half-written pack.

Until then the file begins with a marker of its own, by which a leftover is known: a file of that
name that is none is never written to, nor a link followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Encoding, Part
from tolpack.container.atomic_write import (
    DISK_FULL,
    check_output,
    close,
    partial_path,
    publish,
    remove,
    same_file,
    sync,
    sync_folder,
    take_over,
)
from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.crc import CHECKSUM_BYTES, crc32, place_checksum
from tolpack.container.header import ARRAY_DTYPES, Header, Section
from tolpack.container.index import encode_index
from tolpack.container.journal import Journal, has_journal, journal_path
from tolpack.container.preamble import (
    MAX_HEADER_BYTES,
    PREAMBLE_BYTES,
    SECTION_ALIGNMENT,
    Preamble,
    align,
)
from tolpack.errors import ConfigError, FileAccessError

Compress = Callable[[bytes], bytes]

# What an unfinished pack begins with, where a finished one has its magic.
_MARKER = b"\x89TOLPART"


def check_unfinished(path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise `ConfigError` if one of `inputs` has a name that writing a pack to `path` needs."""
    partial = partial_path(path)
    for needed in (partial, journal_path(partial)):
        if any(one is not None and same_file(needed, one) for one in inputs):
            raise ConfigError(
                f"input {needed} has the name of what is written before {path} is complete: "
                "rename it, or use another -o"
            )


class PackWriter:
    """Writes one pack; use as a context manager, then `commit`.

    Parameters
    ----------
    path : Path
        Final name. An existing file is replaced only by `commit`.
    key : bytes
        At least 8 bytes that identify inputs and settings: the same key gives the same pack.
        Its first 8 bytes become the pack id that seeds the block checksums.
    header_room : int
        Upper bound of the header's JSON in bytes; `commit` fails if the header is longer.
    resume : bool
        Continue an interrupted build of the same key. Without it a leftover is overwritten.
    attempt : int
        Tells tries of one key with other contents apart: a leftover of another one is overwritten.
    replace : bool
        Whether a file that has the final name by then is replaced.
    check : callable, optional
        Called before a section is noted as finished, and before the pack gets its name; raises if
        the inputs are no longer what `key` says.

    Raises
    ------
    ConfigError
        The leftover that `resume` would continue was made with another key, or the output is a
        folder, a device or the like.
    FileAccessError
        The folder is not writable, the disk is full, another build writes the same output, or a
        file that is no leftover has the name of one.
    """

    def __init__(
        self,
        path: Path,
        key: bytes,
        header_room: int,
        *,
        resume: bool = False,
        attempt: int = 0,
        replace: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        if header_room > MAX_HEADER_BYTES:
            raise ConfigError(
                f"the header may take {header_room} bytes, but the format allows "
                f"{MAX_HEADER_BYTES}: the table has too many layers or chunks"
            )
        check_output(path)
        self.path = path
        self.pack_id = int.from_bytes(key[:8], "little")
        self._key = key.hex()
        self._attempt = attempt
        self._replace, self._check = replace, check
        self.sections: list[Section] = []
        self._partial = partial_path(path)
        self._data_start = align(PREAMBLE_BYTES + header_room, SECTION_ALIGNMENT)
        self._done: list[Section] = []
        self._expected = 0
        with self._disk_errors():
            # Nothing of another is changed. Shortly before it gets its name it begins as a pack.
            known = has_journal(self._partial)
            self._file = take_over(self._partial, _MARKER, known=known)
        try:
            self._begin(resume)
        except BaseException:
            close(self._file)
            raise

    def _begin(self, resume: bool) -> None:
        """Find out what is done already, and forget the rest."""
        with self._disk_errors():
            size = os.fstat(self._file.fileno()).st_size
            self._journal = Journal(self._partial, known=size > 0)
            try:
                if resume and size:
                    self._done = self._journal.read(self._key, self._attempt)
                if self._done and self._done[-1].end_bytes > size:
                    self._done = []
                if self._done:
                    self._journal.keep(len(self._done))
                else:
                    self._start_again()
                sync_folder(self._partial.parent)  # a journal lost alone makes a leftover foreign
            except BaseException:
                close(self._journal.file)
                raise

    def _start_again(self) -> None:
        self._journal.begin(self._key, self._attempt)
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(_MARKER)
        sync(self._file)

    @property
    def resumed_sections(self) -> int:
        """Number of sections that an interrupted build had already finished."""
        return len(self._done)

    @property
    def end_bytes(self) -> int:
        """Bytes of the file so far."""
        return self.sections[-1].end_bytes if self.sections else self._data_start

    def expect(self, more_bytes: int) -> None:
        """Tell how many bytes are about to follow, so that a disk too small is noticed early.

        Raises
        ------
        FileAccessError
            The disk has not room for them. What was written stays for a later `resume`; nothing
            stays if that was nothing.
        """
        self._expected = self.end_bytes + more_bytes
        with self._disk_errors():
            missing = self._missing() - disk_usage(self.path.parent).free
        if missing <= 0:
            return
        hint = "and continue with --resume"
        if not self.sections and not self._done:
            self.discard()
            hint = "or build elsewhere with -o"
        raise FileAccessError(
            f"{self.path} would take {self._expected:,} bytes, and its disk lacks {missing:,} of "
            f"them: free some space {hint}"
        )

    def add_array(
        self, kind: str, make: Callable[[], NDArray[np.generic]], part: Part | None = None
    ) -> tuple[int, NDArray[np.generic]]:
        """Add an array section; returns its number and the array.

        `make` is called only if an interrupted build had not written it already. With `part`, it
        gives the rows of a coded basis, uint8 (rank, bytes of a row).
        """
        number = len(self.sections)
        if number < len(self._done):
            self.sections.append(self._done[number])
            return number, self._read_array(self._done[number])
        array = np.ascontiguousarray(make())
        dtype, shape = array.dtype.name, tuple(array.shape)
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        found = Section(kind, 0, len(data), crc32(data), dtype, shape)
        if part is not None:
            found = replace(
                found, dtype=None, shape=(len(array), part.values),
                codec=part.codec, group_size=part.group_size,
            )  # fmt: skip
        elif dtype not in ARRAY_DTYPES:
            raise ConfigError(f"{kind} arrays are {', '.join(ARRAY_DTYPES)}, not {dtype}")
        self._write_section(found, [data])
        return number, array

    def add_chunk(
        self,
        encoding: Encoding,
        first_slot: int,
        records: Callable[[], Iterable[NDArray[np.uint8]]],
        compress: Compress,
    ) -> tuple[int, int | None]:
        """Add a chunk's blocks, and their index if they are frames; returns the section numbers.

        Parameters
        ----------
        encoding : Encoding
            Frame, and the rows in a block.
        first_slot : int
            Slot of the chunk's first row.
        records : callable
            Gives uint8 arrays (rows, record_bytes); every one but the last is a whole number of
            blocks. Called only if an interrupted build had not written the chunk already.
        compress : callable
            Makes one frame of a block's records; not used for ``raw``.
        """
        number = len(self.sections)
        lengths: list[int] = []
        framed = encoding.is_compressed
        if number < len(self._done) and not (framed and number + 1 == len(self._done)):
            self.sections += self._done[number : number + (2 if framed else 1)]
            return number, number + 1 if framed else None
        if number < len(self._done):  # blocks without their index are written again
            self._done = self._done[:number]
            with self._disk_errors():
                self._journal.keep(number)
        blocks = _blocks(encoding, records(), first_slot, self.pack_id, compress)
        self._write_section(Section("blocks", 0, 0), _measured(blocks, lengths))
        if not framed:
            return number, None
        index = encode_index(lengths, self.pack_id, first_slot, encoding.rows_per_block)
        self._write_section(Section("index", 0, 0), [index])
        return number, number + 1

    def commit(self, header: Header) -> int:
        """Write header and preamble, sync, and give the file its final name; returns its bytes."""
        data = header.to_json()
        room = self._data_start - PREAMBLE_BYTES
        if len(data) > min(room, MAX_HEADER_BYTES):
            raise ConfigError(f"the header takes {len(data)} bytes, but {room} were kept for it")
        data = data.ljust(min(room, MAX_HEADER_BYTES))  # JSON may end in spaces
        end = self.end_bytes
        required = header.required_features()
        preamble = Preamble(len(data), end, required, self.pack_id, crc32(data))
        self._check()
        with self._disk_errors():
            self._file.truncate(end)
            self._file.seek(0)
            self._file.write(preamble.to_bytes() + data)
            publish(self._file, self._partial, self.path, replace=self._replace)
            self._journal.remove()
        return end

    def discard(self) -> None:
        """Remove what was written so far; the final name is not touched."""
        self._journal.remove()
        remove(self._file, self._partial)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:  # what could not be written must not hide the first error
            close(self._file)
        close(self._journal.file)  # each of its lines is on the disk
        with self._disk_errors():
            self._file.close()

    def _write_section(self, described: Section, parts: Iterable[bytes]) -> None:
        """Append a section; its place follows from what is written."""
        previous = self.end_bytes
        offset = align(previous, SECTION_ALIGNMENT)
        length = 0
        with self._disk_errors():
            self._file.seek(previous)
            self._file.write(bytes(offset - previous))
            for part in parts:
                self._file.write(part)
                length += len(part)
            sync(self._file)
            self._check()
            section = replace(described, offset_bytes=offset, length_bytes=length)
            self.sections.append(section)
            self._journal.append(section)

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
                hint = f"; {needed}free some space and continue with --resume"
            raise FileAccessError(
                f"cannot write {self._partial}: {error.strerror or error}{hint}"
            ) from error

    def _read_array(self, section: Section) -> NDArray[np.generic]:
        with self._disk_errors():
            self._file.seek(section.offset_bytes)
            data = self._file.read(section.length_bytes)
        if crc32(data) != section.crc32:
            raise FileAccessError(
                f"{self._partial} is damaged: delete it and build without --resume"
            )
        dtype = np.dtype(section.stored_dtype).newbyteorder("<")
        return np.frombuffer(data, dtype=dtype).reshape(section.stored_shape)


def _blocks(
    encoding: Encoding,
    records: Iterable[NDArray[np.uint8]],
    first_slot: int,
    pack_id: int,
    compress: Compress,
) -> Iterator[bytes]:
    """Cut records into blocks: raw ones padded to their fixed size, or one frame each."""
    slot, rows = first_slot, encoding.rows_per_block
    for part in records:
        room = raw_block_bytes(part.shape[1], rows) - CHECKSUM_BYTES
        for start in range(0, len(part), rows):
            data = part[start : start + rows].tobytes()
            payload = compress(data) if encoding.is_compressed else data.ljust(room, b"\0")
            yield payload + place_checksum(payload, pack_id, slot).to_bytes(
                CHECKSUM_BYTES, "little"
            )
            slot += rows


def _measured(blocks: Iterable[bytes], lengths: list[int]) -> Iterator[bytes]:
    for block in blocks:
        lengths.append(len(block))
        yield block
