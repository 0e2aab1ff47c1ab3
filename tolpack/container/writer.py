"""Writing a pack: sections one after the other, resumable after a kill, then the header.

`PackWriter` lays the file out and gives its bytes to a `tolpack.container.byte_sink.ByteSink`.
After each section the sink is synced and told that the section is finished. A build that was killed
and is started again with the same key finds the finished sections there, and repeats only the one
that was cut off. `PackWriter.commit` writes the header into the room kept at the front and gives
the pack its name. A half-written pack never has it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import CoderSettings, Encoding, Part
from tolpack.container.byte_sink import ByteSink
from tolpack.container.crc import TABLE_PLACES, crc32
from tolpack.container.header import ARRAY_DTYPES, Header, Section
from tolpack.container.header_features import required_features
from tolpack.container.index import encode_index, fewest_length_bytes
from tolpack.container.local_sink import LocalSink
from tolpack.container.preamble import (
    MAX_HEADER_BYTES,
    PREAMBLE_BYTES,
    SECTION_ALIGNMENT,
    Preamble,
    align,
    version_of,
)
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.array_types import Buffer


def check_header_room(header_room: int) -> None:
    """Raise `ConfigError` if the format allows no header of `header_room` bytes."""
    if header_room > MAX_HEADER_BYTES:
        raise ConfigError(
            f"the header may take {header_room} bytes, but the format allows {MAX_HEADER_BYTES}: "
            "the table has too many layers or chunks"
        )


class PackWriter:
    """Writes one pack; use as a context manager, then `commit`.

    Parameters
    ----------
    target : Path or ByteSink
        Final name, whose existing file is replaced only by `commit`; or a sink that was opened for
        the same key, which decides on `resume` and `replace` itself.
    key : bytes
        At least 8 bytes that identify inputs and settings: the same key gives the same pack.
        Its first 8 bytes become the pack id that seeds the block checksums.
    header_room : int
        Upper bound of the header's JSON in bytes; `commit` fails if the header is longer.
    resume : bool
        Continue an interrupted build of the same key. Without it a leftover is overwritten.
    attempt : int
        Tells packs of one key with other contents apart: a leftover of another one is overwritten.
    replace : bool
        Whether a file that has the final name by then is replaced.
    alignment : int
        Sections begin at multiples of so many bytes: of the header to come.
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
        file that is not a leftover has the name of one.
    """

    def __init__(
        self,
        target: Path | ByteSink,
        key: bytes,
        header_room: int,
        *,
        resume: bool = False,
        attempt: int = 0,
        replace: bool = True,
        alignment: int = SECTION_ALIGNMENT,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        check_header_room(header_room)
        self.pack_id = int.from_bytes(key[:8], "little")
        self.sections: list[Section] = []
        self._check, self._alignment = check, alignment
        self._data_start = align(PREAMBLE_BYTES + header_room, alignment)
        if isinstance(target, Path):
            target = LocalSink(target, key.hex(), resume=resume, replace=replace)
        self._sink = target
        try:
            self._sink.begin(attempt)
        except BaseException:
            self._sink.close(failed=True)
            raise
        self._resumed = len(self._sink.finished)

    @property
    def resumed_sections(self) -> int:
        """Number of sections that an interrupted build had already finished."""
        return self._resumed

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
        self._sink.expect(self.end_bytes + more_bytes)

    def add_array(
        self, kind: str, make: Callable[[], NDArray[np.generic]], part: Part | None = None
    ) -> tuple[int, NDArray[np.generic]]:
        """Add an array section; returns its number and the array.

        `make` is called only if an interrupted build had not written it already. With `part`, it
        gives the rows of a coded basis, uint8 (rank, bytes of a row).
        """
        number, finished = len(self.sections), self._sink.finished
        if number < len(finished):
            self.sections.append(finished[number])
            return number, self._read_array(finished[number])
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

    def add_stored_array(self, described: Section, parts: Iterable[Buffer]) -> int:
        """Add an array as another pack stores it; returns its section's number.

        Parameters
        ----------
        described : Section
            The section there; it gets another place.
        parts : iterable of bytes or memoryview
            Its bytes.
        """
        self._write_section(described, parts)
        return len(self.sections) - 1

    def add_entropy_coded_basis(
        self, make: Callable[[], bytes], shape: tuple[int, int], coder: CoderSettings
    ) -> int:
        """Add a basis, as `tolpack.codecs.ans.basis_coder` codes it; returns its section's number.

        `make` is called only if an interrupted build had not written it already. `shape`: rank and
        width.
        """
        number, finished = len(self.sections), self._sink.finished
        if number < len(finished):
            self.sections.append(finished[number])
            return number
        data, group_size = make(), shape[1] + shape[1] % 2
        described = Section(
            "coded_basis", 0, len(data), crc32(data), None, shape, "int8", group_size, coder
        )
        self._write_section(described, [data])
        return number

    def add_chunk(
        self,
        encoding: Encoding,
        first_slot: int,
        blocks: Callable[[], Iterable[Buffer]],
        table: int = 0,
    ) -> tuple[int, int | None]:
        """Add a chunk's blocks, and their index if they are frames; returns the section numbers.

        Parameters
        ----------
        encoding : Encoding
            Frame, and the rows in a block.
        first_slot : int
            Slot of the chunk's first row.
        blocks : callable
            Gives the blocks, see `tolpack.container.blocks.encode_blocks`. Called only if an
            interrupted build had not written the chunk already.
        table : int
            Number of the chunk's table in the header. Chunks of several tables may come in any
            order; those of one table come in the order of their slots.
        """
        number, finished = len(self.sections), self._sink.finished
        lengths: list[int] = []
        framed = encoding.is_compressed
        if number < len(finished) and not (framed and number + 1 == len(finished)):
            self.sections += finished[number : number + (2 if framed else 1)]
            return number, number + 1 if framed else None
        if number < len(finished):  # blocks without their index are written again
            self._resumed = number
            self._sink.forget(number)
        with _closed_after(blocks()) as made:
            self._write_section(Section("blocks", 0, 0), _measured(made, lengths))
        return number, self._add_index(encoding, first_slot, lengths, table) if framed else None

    def add_stored_chunk(
        self,
        encoding: Encoding,
        first_slot: int,
        blocks_bytes: int,
        lengths: Sequence[int],
        table: int = 0,
    ) -> tuple[int, int | None]:
        """Add a chunk whose blocks are stored elsewhere already, `blocks_bytes` in all; returns the
        section numbers.

        Parameters
        ----------
        encoding, first_slot, table
            As of `add_chunk`.
        blocks_bytes : int
            Bytes of all blocks.
        lengths : sequence of int
            Bytes of each block, its checksum included; of raw blocks they are not needed.
        """
        number, offset = len(self.sections), align(self.end_bytes, self._alignment)
        section = Section("blocks", offset, blocks_bytes)
        self.sections.append(section)
        self._sink.note(section)
        framed = encoding.is_compressed
        return number, self._add_index(encoding, first_slot, lengths, table) if framed else None

    def _add_index(
        self, encoding: Encoding, first_slot: int, lengths: Sequence[int], table: int
    ) -> int:
        """Add the index of a chunk's frames; returns its section's number."""
        number, first_place = len(self.sections), first_slot + table * TABLE_PLACES
        length_bytes = 4 if encoding.coder is None else self._length_bytes(lengths)
        index = encode_index(
            lengths, self.pack_id, first_place, encoding.rows_per_block, length_bytes
        )
        self._write_section(Section("index", 0, 0), [index])
        return number

    def _length_bytes(self, lengths: Sequence[int]) -> int:
        return fewest_length_bytes(lengths)

    def commit(self, header: Header) -> int:
        """Write header and preamble, sync, and give the file its final name; returns its bytes."""
        data = header.to_json()
        room = self._data_start - PREAMBLE_BYTES
        if len(data) > min(room, MAX_HEADER_BYTES):
            raise ConfigError(f"the header takes {len(data)} bytes, but {room} were kept for it")
        data = data.ljust(min(room, MAX_HEADER_BYTES))  # JSON may end in spaces
        end = self.end_bytes
        required = required_features(header)
        preamble = Preamble(
            len(data), end, required, self.pack_id, crc32(data), version=version_of(required)
        )
        self._check()
        self._sink.commit(end, preamble.to_bytes() + data)
        return end

    def discard(self) -> None:
        """Remove what was written so far; the final name is not touched."""
        self._sink.discard()

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sink.close(failed=kind is not None)

    def _write_section(self, described: Section, parts: Iterable[Buffer]) -> None:
        """Append a section; its place follows from what is written."""
        previous = self.end_bytes
        offset = align(previous, self._alignment)
        padded = chain([bytes(offset - previous)], parts)
        length = self._sink.write(previous, padded) - (offset - previous)
        self._sink.sync()
        self._check()
        section = replace(described, offset_bytes=offset, length_bytes=length)
        self.sections.append(section)
        self._sink.note(section)

    def _read_array(self, section: Section) -> NDArray[np.generic]:
        data = self._sink.read(section.offset_bytes, section.length_bytes)
        if crc32(data) != section.crc32:
            raise FileAccessError(
                f"{self._sink.name} is damaged: delete it and build without --resume"
            )
        dtype = np.dtype(section.stored_dtype).newbyteorder("<")
        return np.frombuffer(data, dtype=dtype).reshape(section.stored_shape)


@contextmanager
def _closed_after(blocks: Iterable[Buffer]) -> Iterator[Iterable[Buffer]]:
    """Close a generator at the end, even if not all was taken: it may hold threads."""
    try:
        yield blocks
    finally:
        if isinstance(blocks, Generator):
            blocks.close()


def _measured(blocks: Iterable[Buffer], lengths: list[int]) -> Iterator[Buffer]:
    for block in blocks:
        lengths.append(len(block))
        yield block
