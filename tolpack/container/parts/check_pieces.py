"""Holding the pieces of a manifest against the sections of the pack and against the part files.

After `check_pieces` every byte of every section has one place, in a part file of a known length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.chunk_view import chunk_views
from tolpack.container.header import Chunk, Header
from tolpack.container.parts.manifest import Manifest, PartFile, Piece
from tolpack.container.preamble import SECTION_ALIGNMENT, align
from tolpack.errors import FormatError

# Bytes of the length of a block.
LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """A chunk and where it stands: its table's number, and the slot of its first row."""

    table: int
    number: int
    first_slot: int
    chunk: Chunk
    rows_per_block: int
    record_bytes: int
    framed: bool

    @property
    def block_bytes(self) -> int:
        """Bytes of a raw block, and about those of a block before it becomes a frame."""
        return raw_block_bytes(self.record_bytes, self.rows_per_block)

    def blocks(self, rows: int) -> int:
        """Return the number of blocks that `rows` rows take."""
        return -(-rows // self.rows_per_block)


def chunk_runs(header: Header) -> list[ChunkRun]:
    """Return all chunks of a pack, table by table."""
    return [
        ChunkRun(
            number, place, view.first_slot, view.chunk, view.rows_per_block, view.record_bytes,
            view.encoding.is_compressed,
        )
        for number, table in enumerate(header.tables)
        for place, view in enumerate(chunk_views(header, table))
    ]  # fmt: skip


def check_pieces(manifest: Manifest, header: Header) -> None:
    """Raise `FormatError`, code ``piece``, unless the pieces are all bytes of all sections."""
    runs = {run.chunk.blocks: run for run in chunk_runs(header)}
    found, rows = [0] * len(header.sections), dict.fromkeys(runs, 0)
    for number, piece in manifest.pieces:
        place = f"manifest.files[{number}], a piece of section {piece.section}"
        if piece.section >= len(header.sections):
            raise FormatError("piece", place, piece.section, f"below {len(header.sections)}")
        run = runs.get(piece.section)
        if run is None:
            described = (piece.table, piece.first_row, piece.rows, piece.lengths_offset_bytes)
            _expect(f"{place}: rows", described, (None,) * 4)
        else:
            _check_blocks(piece, run, rows[piece.section], place)
            rows[piece.section] += int(piece.rows or 0)
        found[piece.section] += piece.length_bytes
    for number, section in enumerate(header.sections):
        _expect(f"pieces of section {number}, bytes", found[number], section.length_bytes)
        if number in runs:
            _expect(f"pieces of section {number}, rows", rows[number], runs[number].chunk.rows)
    for number, file in enumerate(manifest.files):
        _check_file(file, runs, f"manifest.files[{number}]")


def _check_blocks(piece: Piece, run: ChunkRun, before: int, place: str) -> None:
    """Hold a piece of blocks against its chunk, of which `before` rows were seen."""
    _expect(f"{place}: table", piece.table, run.table)
    _expect(f"{place}: first_row", piece.first_row, run.first_slot + before)
    left = run.chunk.rows - before
    rows = piece.rows or 0
    if not 0 < rows <= left or (rows < left and rows % run.rows_per_block):
        expected = f"whole blocks of {run.rows_per_block}, at most {left}"
        raise FormatError("piece", f"{place}: rows", piece.rows, expected)
    if run.framed:
        expected_at = align(piece.offset_bytes + piece.length_bytes, SECTION_ALIGNMENT)
        _expect(f"{place}: lengths_offset_bytes", piece.lengths_offset_bytes, expected_at)
    else:
        _expect(f"{place}: lengths_offset_bytes", piece.lengths_offset_bytes, None)
        _expect(f"{place}: length", piece.length_bytes, run.blocks(rows) * run.block_bytes)


def _check_file(file: PartFile, runs: dict[int, ChunkRun], place: str) -> None:
    """Pieces lie back to back, on pages, up to the end of the file."""
    first = file.pieces[0].offset_bytes
    if not first or first % SECTION_ALIGNMENT:
        raise FormatError("piece", place, f"a piece at {first}", f"at {SECTION_ALIGNMENT} · n")
    end = first
    for offset, length in file_extents(file, runs):
        _expect(f"{place}: offset of a piece", offset, align(end, SECTION_ALIGNMENT))
        end = offset + length
    _expect(f"{place}: length_bytes", file.length_bytes, end)


def file_extents(file: PartFile, runs: Mapping[int, ChunkRun]) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what lies in a part file: pieces, and the lengths of their blocks.

    `runs` are the chunks by the number of their sections of blocks.
    """
    for piece in file.pieces:
        yield piece.offset_bytes, piece.length_bytes
        if piece.lengths_offset_bytes is not None:
            blocks = runs[piece.section].blocks(int(piece.rows or 0))
            yield piece.lengths_offset_bytes, LENGTH_BYTES * blocks


def _expect(place: str, found: object, expected: object) -> None:
    if found != expected:
        raise FormatError("piece", place, found, expected)
