"""Token maps that give the chunk of each token (SPEC §5).

In a chunk, tokens then lie in the order of their ids, so a map takes a few bits a token: of small
packs a whole one takes one hundredth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Bytes

# Chunks and rows of a table that may have such a map; its reader has four bytes for each row.
MOST_CHUNKS, MOST_ROWS = 1 << 8, 1 << 24
# Bytes of a map that are taken apart at a time.
_PIECE = 1 << 15


def chunk_bits(chunks: int) -> int:
    """Bits of a number below `chunks`: 1, 2, 4 or 8."""
    return next(bits for bits in (1, 2, 4, 8) if chunks <= 1 << bits)


def map_bytes(rows: int, chunks: int) -> int:
    """Bytes of the map of a table of `rows` rows in `chunks` chunks."""
    return -(-rows * chunk_bits(chunks) // 8)


def pack_numbers(numbers: NDArray[np.integer[Any]], chunks: int) -> Bytes:
    """Return the map of tokens in the chunks of `numbers`, by token id: uint8 (n,)."""
    bits = chunk_bits(chunks)
    whole = np.zeros(map_bytes(len(numbers), chunks) * (8 // bits), np.uint8)
    whole[: len(numbers)] = numbers
    shifted = whole.reshape(-1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(shifted, axis=1)
    return packed


def slots_of_chunks(packed: Bytes, chunk_rows: Sequence[int]) -> NDArray[Any] | None:
    """Return the slot of each token by a map, uint16 or uint32 (rows,); ``None`` if the numbers of
    tokens are not `chunk_rows`, or bits behind the last one are not zero.
    """
    bits, rows = chunk_bits(len(chunk_rows)), sum(chunk_rows)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    ends = np.cumsum(chunk_rows)
    ahead = ends - chunk_rows
    slots = np.empty(rows, np.uint16 if rows <= 1 << 16 else np.uint32)
    for start in range(0, len(packed), _PIECE):
        own = packed[start : start + _PIECE, None] >> shifts & ((1 << bits) - 1)
        numbers, first = own.astype(np.uint8).reshape(-1), start * (8 // bits)
        numbers, behind = np.split(numbers, [rows - first])
        counts = np.bincount(numbers, minlength=len(ends))
        if behind.any() or len(counts) > len(ends) or (ahead + counts > ends).any():
            return None
        order = np.argsort(numbers, kind="stable")
        before = np.cumsum(counts) - counts
        slots[first + order] = np.repeat(ahead - before, counts) + np.arange(len(numbers))
        ahead += counts
    return slots if (ahead == ends).all() else None
