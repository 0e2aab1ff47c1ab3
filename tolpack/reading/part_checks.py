"""Checking the part files of a pack against its manifest, several at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tolpack.container.byte_source import ByteSource
from tolpack.container.parts.check_pieces import ChunkRun, chunk_runs
from tolpack.container.parts.manifest import PartFile
from tolpack.container.parts.part_file import check_part_file, read_lengths
from tolpack.container.parts.parts_source import PartsSource
from tolpack.container.verified_reader import Container
from tolpack.errors import FileAccessError, FormatError
from tolpack.runtime.pool import Pool


def part_errors(
    container: Container, pool: Pool
) -> list[tuple[PartFile, FormatError | FileAccessError]]:
    """Read all part files of a pack, and return those that are not what its manifest says; none for
    a pack of one file. `pool` shares the work.
    """
    source = container.source
    if not isinstance(source, PartsSource):
        return []
    files = source.manifest.files
    runs = {run.chunk.blocks: run for run in chunk_runs(container.header)}

    def check(number: int) -> FormatError | FileAccessError | None:
        try:
            place = number, len(files)
            with source.reading(number) as file:
                check_part_file(file, files[number], place, container.preamble.pack_id, runs)
                _check_lengths(container, file, files[number], runs)
        except (FormatError, FileAccessError) as error:
            return error.with_traceback(None)  # it holds on to the bytes
        return None

    found = pool.map(check, range(len(files)))
    return [(file, error) for file, error in zip(files, found) if error is not None]


def _check_lengths(
    container: Container, opened: ByteSource, file: PartFile, runs: Mapping[int, ChunkRun]
) -> None:
    """Hold the lengths of blocks that a part file gives against the index."""
    for piece in file.pieces:
        if piece.lengths_offset_bytes is None:
            continue
        run = runs[piece.section]
        view = container.of_table(run.table)
        first = (int(piece.first_row or 0) - run.first_slot) // run.rows_per_block
        blocks = run.blocks(int(piece.rows or 0))
        indexed = [view.block_extent(run.number, first + block)[1] for block in range(blocks)]
        if not np.array_equal(read_lengths(opened, piece, blocks), indexed):
            raise FormatError("part-mismatch", file.name, "other lengths of blocks", "the index's")
