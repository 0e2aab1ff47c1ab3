"""Part files: a preamble, a header that describes the pieces, and the pieces (SPEC §15).

A part file is written to a temporary file of this machine. Its header is known last, so room is
kept for it; then the digest of all bytes becomes its name, and a folder takes it whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.container.byte_source import ByteSource
from tolpack.container.crc import compare, crc32
from tolpack.container.parts.check_pieces import LENGTH_BYTES, ChunkRun, file_extents
from tolpack.container.parts.manifest import MAX_PIECES, PartFile, Piece, parse_piece
from tolpack.container.preamble import (
    MAX_FILES,
    MAX_HEADER_BYTES,
    PART_FILE_FEATURES,
    PREAMBLE_BYTES,
    SECTION_ALIGNMENT,
    Preamble,
    align,
    parse_preamble,
)
from tolpack.container.strict_json import parse
from tolpack.container.typed_json import Node
from tolpack.errors import ChecksumError, ConfigError, FormatError
from tolpack.runtime.array_types import Buffer
from tolpack.runtime.files import sync
from tolpack.storage.folder import Folder

# The version of the format that has part files.
_VERSION = (1, 3)
# Bytes of a header without pieces, and of a piece, at most.
_HEADER_BYTES, _PIECE_BYTES = 512, 256
_COPY_BYTES = 4 << 20
_PLAN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class PartHeader:
    """What a part file says of itself: it is file ``index`` of ``count`` of pack ``pack_id``.

    ``plan`` tells part files of one pack id apart that were made by different plans; any number.
    ``end_bytes``: where the header ends.
    """

    pack_id: int
    index: int
    count: int
    pieces: tuple[Piece, ...]
    plan: int | None = None
    end_bytes: int = 0


class PartWriter:
    """Writes one part file to a folder; use as a context manager, then `commit`.

    Parameters
    ----------
    folder : Folder
        Gets the file, under the name of its content.
    described : PartHeader
        The file; its pieces are those that will be added.
    producer : str
        The writing program and its version.
    pieces : int
        Pieces that will be added, at most.

    Raises
    ------
    ConfigError
        So many pieces do not fit into a header.
    FileAccessError
        The folder, or the temporary file, cannot be written.
    """

    def __init__(self, folder: Folder, described: PartHeader, producer: str, pieces: int) -> None:
        room = align(PREAMBLE_BYTES + _HEADER_BYTES + _PIECE_BYTES * pieces, SECTION_ALIGNMENT)
        if room - PREAMBLE_BYTES > MAX_HEADER_BYTES:
            raise ConfigError(f"a part file of {pieces} pieces: make the parts smaller")
        self._folder, self._described, self._producer = folder, described, producer
        self._end = self._start = room
        self._pieces: list[Piece] = []
        self._exit = ExitStack()

    def __enter__(self) -> PartWriter:
        self._path = self._exit.enter_context(self._folder.temporary())
        self._file = self._exit.enter_context(open(self._path, "w+b"))
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def add(self, section: int, data: Iterable[Buffer]) -> None:
        """Add a piece of an array or an index."""
        offset = self._begin()
        self._pieces.append(Piece(section, offset, self._write(data)))

    def add_blocks(
        self,
        section: int,
        table: int,
        first_row: int,
        rows: int,
        blocks: Iterable[Buffer],
        *,
        framed: bool,
    ) -> None:
        """Add a piece of blocks, those of `rows` slots of table number `table` from `first_row` on;
        with `framed`, every buffer of `blocks` is one frame.
        """
        lengths: list[int] = []
        offset = self._begin()
        length = self._write(_measured(blocks, lengths) if framed else blocks)
        at = None
        if framed:
            at = self._begin()
            self._write([np.asarray(lengths, "<u4").tobytes()])
        self._pieces.append(Piece(section, offset, length, table, first_row, rows, at))

    def commit(self) -> PartFile:
        """Write header and preamble, and store the file; returns what it became."""
        header = self._header()
        preamble = Preamble(
            len(header), self._end, PART_FILE_FEATURES, self._described.pack_id, crc32(header),
            version=_VERSION,
        )  # fmt: skip
        self._file.seek(0)
        self._file.write(preamble.to_bytes() + header)
        if self._folder.is_durable:
            sync(self._file)
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        made = PartFile(digest, self._end, tuple(self._pieces))
        self._folder.put(made.name, self._path)
        return made

    def _header(self) -> bytes:
        one = self._described
        value: dict[str, object] = {
            "producer": self._producer,
            "file": {"index": one.index, "count": one.count},
            "pieces": [piece.to_json() for piece in self._pieces],
        }
        if one.plan is not None:
            value["x-plan"] = f"{one.plan:016x}"
        data = json.dumps(value, separators=(",", ":")).encode()
        return data.ljust(self._start - PREAMBLE_BYTES)  # JSON may end in spaces

    def _begin(self) -> int:
        """Go to where the next bytes begin; what is skipped reads as zeros."""
        self._end = align(self._end, SECTION_ALIGNMENT)
        self._file.seek(self._end)
        return self._end

    def _write(self, data: Iterable[Buffer]) -> int:
        length = 0
        for one in data:
            self._file.write(one)
            length += len(one)
        self._end += length
        return length


def read_part_header(source: ByteSource) -> PartHeader:
    """Read what a part file says of itself: at most two small reads.

    Raises
    ------
    FormatError, ChecksumError, UnsupportedVersionError, FileAccessError
        It is not a part file, or damaged.
    """
    first = bytes(source.read(0, min(source.size, SECTION_ALIGNMENT)))
    preamble = parse_preamble(first, source.size, PART_FILE_FEATURES)
    if not preamble.required_features:
        raise FormatError("feature-mismatch", "preamble", "no part file", "a part file of a pack")
    end = PREAMBLE_BYTES + preamble.header_length
    if end > source.size:
        raise FormatError("truncated", "header", f"{source.size} bytes", f"{end} bytes")
    data = first[PREAMBLE_BYTES:end]
    if end > len(first):
        data += bytes(source.read(len(first), end - len(first)))
    compare("header-checksum", "header", crc32(data), preamble.header_crc32)
    return _parse_header(data, preamble.pack_id)


def _parse_header(data: bytes, pack_id: int) -> PartHeader:
    root = Node(parse(data), "header")
    root.text("producer")
    file, plan = root.node("file"), root.value.get("x-plan")
    count = file.integer("count", 1, MAX_FILES)
    pieces = tuple(parse_piece(node) for node in root.items("pieces", 1, MAX_PIECES))
    known = isinstance(plan, str) and _PLAN.fullmatch(plan)
    number = int(str(plan), 16) if known else None
    end = PREAMBLE_BYTES + len(data)
    return PartHeader(pack_id, file.integer("index", 0, count - 1), count, pieces, number, end)


def read_lengths(source: ByteSource, piece: Piece, blocks: int) -> NDArray[np.uint32]:
    """Read the lengths of the `blocks` frames of a piece, uint32 (blocks,), checksums included."""
    data = source.read(int(piece.lengths_offset_bytes or 0), LENGTH_BYTES * blocks)
    return np.frombuffer(data, "<u4")


def check_part_file(
    source: ByteSource,
    file: PartFile,
    place: tuple[int, int],
    pack_id: int,
    runs: Mapping[int, ChunkRun] | None = None,
) -> None:
    """Read all of a part file, and raise unless it is what the manifest says.

    Parameters
    ----------
    source : ByteSource
        The file.
    file : PartFile
        What the manifest says.
    place : tuple of int
        Its number and the number of all files.
    pack_id : int
        The pack's.
    runs : mapping, optional
        Its chunks, by the number of their sections of blocks. Without, bytes that belong to nothing
        are not looked at.

    Raises
    ------
    FormatError
        ``part-digest``, ``part-mismatch``, ``piece``, ``padding``, or as `read_part_header`.
    FileAccessError
        It cannot be read.
    """
    digest = hashlib.sha256()
    for start in range(0, source.size, _COPY_BYTES):
        digest.update(source.read(start, min(_COPY_BYTES, source.size - start)))
    if digest.hexdigest() != file.sha256:
        raise ChecksumError("part-digest", file.name, f"SHA-256 {digest.hexdigest()}", file.sha256)
    found = read_part_header(source)
    if (found.pack_id, found.index, found.count, found.pieces) != (pack_id, *place, file.pieces):
        raise FormatError("part-mismatch", file.name, "another description", "the manifest's")
    first = align(found.end_bytes, SECTION_ALIGNMENT)
    if file.pieces[0].offset_bytes != first:
        raise FormatError("piece", f"{file.name}, first piece", file.pieces[0].offset_bytes, first)
    end = found.end_bytes
    for start, length in file_extents(file, runs) if runs is not None else ():
        if any(source.read(end, start - end)):
            raise FormatError("padding", f"{file.name}, bytes before {start}", "data", "zeros")
        end = start + length


def _measured(blocks: Iterable[Buffer], lengths: list[int]) -> Iterator[Buffer]:
    for block in blocks:
        lengths.append(len(block))
        yield block
