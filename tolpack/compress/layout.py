"""How a pack's rows are arranged: order of tokens, chunks, encodings, and the bytes that follow.

Everything here follows from the shape of the table, the settings and the token counts, before a
single row is computed: `tolpack plan` and `tolpack build` share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.token_order import TokenOrder
from tolpack.container.encodings import Encoding, FieldEncoding, Part, field_bytes, raw_block_bytes
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align

GROUP_SIZE = 64
# How many leading coefficients of a basis may have 8 bits beside 4-bit ones: they are many times
# larger than the rest of their group and drown it (docs/lab-notes.md). `auto` chooses.
LEADING_CHOICES = (0, 8, 16, 32, 64)
# Tokens that make up this share of the text stay raw: no decompression where it counts.
HOT_SHARE = 0.9
# A token's own step goes with the count to the power of minus half of this (docs/lab-notes.md).
STEP_EXPONENT = 0.65
# What a step that is not a token's own costs, in shares of its bytes, for each unit of the square
# of the distance between their logarithms.
_STEP_COST = 0.3

_FIRST_CHUNK_ROWS = 1024
_MAX_CHUNK_ROWS = 16384
_RAW_PADDING_SHARE = 0.02
_FRAME_BYTES = 8192


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """A run of ``rows`` slots from ``first_slot`` on; hot ones stay raw."""

    first_slot: int
    rows: int
    hot: bool


def plan_chunks(order: TokenOrder) -> list[ChunkPlan]:
    """Cut slots into chunks of similar frequency: 1,024, then doubling, at most 16,384 rows."""
    rows = len(order.token_ids)
    bounds, start = [], 0
    while start < rows:
        size = min(max(start, _FIRST_CHUNK_ROWS), _MAX_CHUNK_ROWS)
        bounds.append((start, min(size, rows - start)))
        start += size
    if order.counts is None or not order.counts.sum():
        return [ChunkPlan(start, size, True) for start, size in bounds]
    covered = np.concatenate([[0], np.cumsum(order.counts)]) / order.counts.sum()
    return [ChunkPlan(start, size, bool(covered[start] < HOT_SHARE)) for start, size in bounds]


def step_chunks(
    order: TokenOrder, min_rows: int, row_bytes: float, chunk_bytes: float
) -> list[ChunkPlan]:
    """Cut slots into chunks whose tokens share one step, where that costs least.

    Cuts may fall where counts have halved. Tokens that share a step lose by the square of its
    distance from their own, in natural logarithms: `_STEP_COST` of their bytes. What a chunk takes
    by itself (an encoding in the header, an index, padding) is held against that.

    Parameters
    ----------
    order : TokenOrder
        Counts by slot.
    min_rows : int
        Rows of a chunk at least, but for the last one; at most it has 16,384.
    row_bytes : float
        What a row will take, about.
    chunk_bytes : float
        What a chunk takes beside its rows.
    """
    edges = _octaves(order, min_rows)
    counts = np.zeros(edges[-1]) if order.counts is None else order.counts
    own = -STEP_EXPONENT / 2 * np.log(counts + 1.0)
    sums = np.add.reduceat(own, edges[:-1]).cumsum()
    squares = np.add.reduceat(own**2, edges[:-1]).cumsum()
    rows, sums, squares = edges, np.append(0, sums), np.append(0, squares)
    best, before = np.zeros(len(edges)), np.zeros(len(edges), np.int64)
    for stop in range(1, len(edges)):
        joined = rows[stop] - rows[:stop]
        spread = squares[stop] - squares[:stop] - (sums[stop] - sums[:stop]) ** 2 / joined
        through = best[:stop] + chunk_bytes + _STEP_COST * row_bytes * spread
        before[stop] = through.argmin()
        best[stop] = through[before[stop]]
    cuts = [len(edges) - 1]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    bounds = edges[cuts[::-1]].tolist()
    return [
        ChunkPlan(first, min(_MAX_CHUNK_ROWS, stop - first), hot=False)
        for start, stop in pairwise(bounds)
        for first in range(start, stop, _MAX_CHUNK_ROWS)
    ]


def _octaves(order: TokenOrder, min_rows: int) -> NDArray[np.int64]:
    """Return where counts have halved, int64, from 0 to the rows; `min_rows` apart at least."""
    rows = len(order.token_ids)
    counts = np.zeros(rows, np.int64) if order.counts is None else order.counts
    octaves = np.floor(np.log2(counts + 1.0))
    edges = [0]
    for stop in np.flatnonzero(np.diff(octaves) != 0) + 1:
        if stop - edges[-1] >= min_rows:
            edges.append(int(stop))
    return np.array([*edges, rows])


def field_encoding(values: int, bits: int, codec16: str, leading: int = 0) -> FieldEncoding:
    """Choose the parts of one field.

    Parameters
    ----------
    values : int
        Stored values per row: the width, or the rank with a basis.
    bits : int
        16, 8 or 4.
    codec16 : str
        ``"f16"`` or ``"bf16"``: what 16 bits mean for these values.
    leading : int
        At 4 bits: how many of the first values have 8 bits, in a group of their own.
    """
    if bits == 16:
        return (Part(codec16, values),)
    leading = min(leading, values) if bits == 4 else 0
    parts = []
    if leading:
        parts.append(Part("int8", leading, group_size(leading)))
    if values > leading:
        parts.append(Part(f"int{bits}", values - leading, group_size(values - leading)))
    return tuple(parts)


def group_size(values: int) -> int:
    """Cut `values` into equal groups as close to 64 as they come; even, as SPEC §7 asks."""
    groups = max(1, round(values / GROUP_SIZE))
    return max(2, align(-(-values // groups), 2))


def smooth_field_bytes(values: int, bits: int, leading: int = 0) -> float:
    """Bytes of a field of coefficients, scales spread evenly: what a slope needs, without steps."""
    if bits == 16:
        return 2.0 * values
    scales = 2 * (values - leading) / GROUP_SIZE + (2 if leading else 0)
    return values * bits / 8 + (leading * (8 - bits) / 8 if bits == 4 else 0) + scales


def raw_encoding(fields: tuple[FieldEncoding, ...]) -> Encoding:
    """Choose the block size of raw records: the fewest rows that waste at most 2 %."""
    record = sum(field_bytes(field) for field in fields)
    rows = 1
    while rows < 64 and raw_block_bytes(record, rows) > (1 + _RAW_PADDING_SHARE) * record * rows:
        rows *= 2
    return Encoding("raw", rows, fields)


def zstd_encoding(fields: tuple[FieldEncoding, ...]) -> Encoding:
    """Choose the block size of zstd frames: the fewest rows that make 8 KiB, for the coder."""
    record = sum(field_bytes(field) for field in fields)
    rows = 1
    while rows < 64 and record * rows < _FRAME_BYTES:
        rows *= 2
    return Encoding("zstd", rows, fields)


def build_header_room(layers: int, kept: int, chunks: int, *, has_basis: bool) -> int:
    """Bytes to keep for the header's JSON: an upper bound that fills whole pages with the preamble.

    Every chunk may have an index, every kept layer a basis, a mean and two parts, and there are at
    most two encodings.
    """
    sections = 2 * chunks + (2 * kept if has_basis else 0) + 1
    parts = 2 * kept if has_basis else kept
    estimate = 512 + 112 * layers + 72 * chunks + 128 * sections + 2 * (64 + 56 * parts)
    return align(PREAMBLE_BYTES + estimate, SECTION_ALIGNMENT) - PREAMBLE_BYTES


def file_bytes(header_bytes: int, sections: Sequence[float]) -> int:
    """Bytes of a file: preamble, header, and `sections` of given bytes, each but the last one
    filled up to whole pages.
    """
    sizes = [PREAMBLE_BYTES + header_bytes, *(math.ceil(size) for size in sections)]
    return sum(align(size, SECTION_ALIGNMENT) for size in sizes[:-1]) + sizes[-1]


def raw_chunk_bytes(encoding: Encoding, rows: int) -> int:
    """Bytes of a raw chunk's section."""
    record = sum(field_bytes(field) for field in encoding.fields)
    block = raw_block_bytes(record, encoding.rows_per_block)
    return -(-rows // encoding.rows_per_block) * block
