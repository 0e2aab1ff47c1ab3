"""Which rows go to which part file.

It follows from the header but for lengths, which are known before anything is encoded: from the
bytes that blocks take before they become frames. So a table that is built in parts and a pack that
is split are cut alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tolpack.container.header import Header
from tolpack.container.parts.check_pieces import ChunkRun, chunk_runs
from tolpack.container.parts.manifest import MAX_MANIFEST_BYTES
from tolpack.container.preamble import MAX_HEADER_BYTES
from tolpack.errors import ConfigError

DEFAULT_PART_SIZE = "256MB"
# Rows that builds multiply together are a power of two up to this, counted from the first of a
# chunk: in a run that begins between, products would round differently.
_ROWS_TOGETHER = 2048
# Characters that a part file, and a piece, take in a manifest.
_FILE_BYTES, _PIECE_BYTES = 130, 150


@dataclass(frozen=True, slots=True)
class RowRun:
    """``rows`` rows of a chunk, from its row ``first`` on."""

    chunk: ChunkRun
    first: int
    rows: int

    @property
    def first_slot(self) -> int:
        """Slot of the first row."""
        return self.chunk.first_slot + self.first


def cut(header: Header, part_bytes: int) -> tuple[tuple[RowRun, ...], ...]:
    """Return the rows of each part file that holds rows, in the order of tables and slots.

    Parameters
    ----------
    header : Header
        Of the pack; offsets and lengths of sections do not matter.
    part_bytes : int
        Bytes of a part file, about: of raw blocks exactly, of frames at most. One that holds the
        fewest rows that can be encoded together may be larger.

    Raises
    ------
    ConfigError
        `part_bytes` is less than 1, or so small that a manifest cannot name all part files.
    """
    if part_bytes < 1:
        raise ConfigError(f"--part-size is {part_bytes} bytes, expected at least 1")
    parts: list[tuple[RowRun, ...]] = []
    runs: list[RowRun] = []
    room, pieces = part_bytes, 0
    for chunk in chunk_runs(header):
        first = 0
        while first < chunk.chunk.rows:
            rows = _rows_within(chunk, first, room, empty=not runs)
            if rows:
                runs.append(RowRun(chunk, first, rows))
                first += rows
                room -= chunk.blocks(rows) * chunk.block_bytes
            if first < chunk.chunk.rows or room <= 0:
                parts.append(tuple(runs))
                runs, room = [], part_bytes
                pieces += len(parts[-1])
                if _manifest_bytes(len(parts), pieces) > MAX_MANIFEST_BYTES:
                    raise ConfigError(
                        f"parts of {part_bytes:,} bytes are too many for a manifest: give a "
                        "larger --part-size"
                    )
    return (*parts, tuple(runs)) if runs else tuple(parts)


def _manifest_bytes(files: int, pieces: int) -> int:
    """Return what so many part files take in a manifest at most, beside a header of the longest."""
    return 2 * MAX_HEADER_BYTES + _FILE_BYTES * files + _PIECE_BYTES * pieces


def other_sections(header: Header) -> list[int]:
    """Return the numbers of the sections that hold no rows: they go to the last part file."""
    return [n for n, section in enumerate(header.sections) if section.kind != "blocks"]


def _rows_within(chunk: ChunkRun, first: int, room: int, *, empty: bool) -> int:
    """Return how many rows from `first` on fit into `room` bytes: in steps, and one at least where
    the part file is `empty` yet.
    """
    left = chunk.chunk.rows - first
    step = math.lcm(_ROWS_TOGETHER, chunk.rows_per_block)
    fitting = max(0, room // chunk.block_bytes) * chunk.rows_per_block
    if fitting >= left:
        return left
    rows = fitting // step * step
    return rows or (min(step, left) if empty else 0)
