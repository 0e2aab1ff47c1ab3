"""Cuts between zstd blocks, so that each stretch of bytes has a Huffman table that suits it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Bytes

_SEGMENTS = 16
# Cuts fall between segments: all pairs of cuts, ascending.
_STARTS, _STOPS = np.triu_indices(_SEGMENTS + 1, 1)
# Bytes of a further block's header and Huffman table.
_BLOCK_BYTES = 60.0


def block_bounds(content: Bytes) -> NDArray[np.int64]:
    """Return where to cut `content`, uint8 (n,): int64, ascending from 0 to n.

    Of all cuts between sixteen equal segments, those with the smallest sum of entropies and tables,
    found by dynamic programming.
    """
    edges = np.arange(_SEGMENTS + 1) * len(content) // _SEGMENTS
    cells = np.repeat(np.arange(_SEGMENTS), np.diff(edges)) * 256 + content
    counts = np.bincount(cells, minlength=256 * _SEGMENTS).reshape(_SEGMENTS, 256)
    below = np.concatenate([np.zeros((1, 256), np.int64), counts.cumsum(axis=0)])
    found = below[_STOPS] - below[_STARTS]
    total = found.sum(axis=1)
    bits = total * np.log2(np.maximum(total, 1)) - (found * np.log2(np.maximum(found, 1))).sum(1)
    price = np.full((_SEGMENTS + 1, _SEGMENTS + 1), np.inf)
    price[_STARTS, _STOPS] = bits / 8 + _BLOCK_BYTES
    best, before = np.zeros(_SEGMENTS + 1), np.zeros(_SEGMENTS + 1, np.int64)
    for stop in range(1, _SEGMENTS + 1):
        through = best[:stop] + price[:stop, stop]
        before[stop] = through.argmin()
        best[stop] = through[before[stop]]
    cuts = [_SEGMENTS]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return np.unique(edges[cuts])
