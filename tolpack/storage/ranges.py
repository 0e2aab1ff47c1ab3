"""Extents of a file joined into the ranges of requests.

A request costs a client about 0.1 ms of processor, and a server as much or more; a connection of
100 to 200 MB/s carries 16 KiB in that time. Round trips do not count, as requests wait at the same
time. So bytes between two extents are asked for if they are fewer than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GAP_BYTES = 16 << 10
# A longer range is shared among requests: they run side by side, and a broken one costs less.
RANGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start` … `stop` of a file, and the numbers of the extents that lie in them."""

    start: int
    stop: int
    numbers: tuple[int, ...]


def joined(extents: Sequence[tuple[int, int]]) -> list[Range]:
    """Join extents, each an offset and a length in bytes of at most `RANGE_BYTES`."""
    found: list[Range] = []
    numbers: list[int] = []
    start = stop = 0
    for n in sorted(range(len(extents)), key=extents.__getitem__):
        offset, length = extents[n]
        end = max(stop, offset + length)
        if numbers and (offset > stop + GAP_BYTES or end - start > RANGE_BYTES):
            found.append(Range(start, stop, tuple(numbers)))
            numbers = []
        if not numbers:
            start, end = offset, offset + length
        numbers.append(n)
        stop = end
    return [*found, Range(start, stop, tuple(numbers))] if numbers else found


def pieces(offset: int, length: int) -> Iterable[tuple[int, int]]:
    """Cut an extent into pieces of at most `RANGE_BYTES`."""
    for start in range(offset, offset + length, RANGE_BYTES):
        yield start, min(RANGE_BYTES, offset + length - start)
