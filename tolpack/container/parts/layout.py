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
from tolpack.errors import ConfigError

DEFAULT_PART_SIZE = "256MB"
# Rows that builds multiply together are a power of two up to this, counted from the first of a
# chunk: in a run that begins between, products would round differently.
_ROWS_TOGETHER = 2048


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
        `part_bytes` is less than 1.
    """
    if part_bytes < 1:
        raise ConfigError(f"--part-size is {part_bytes} bytes, expected at least 1")
    parts: list[tuple[RowRun, ...]] = []
    runs: list[RowRun] = []
    room = part_bytes
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
    return (*parts, tuple(runs)) if runs else tuple(parts)


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
