"""Blocks of a chunk from its records: the unit that is stored, checked and read (SPEC §6, §8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from tolpack.codecs.encodings import Encoding
from tolpack.codecs.frames import FRAMES
from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.crc import CHECKSUM_BYTES, TABLE_PLACES, place_checksum
from tolpack.container.index import index_bytes
from tolpack.runtime.array_types import Buffer, Bytes

# Bytes of raw blocks that are made together.
_RAW_BYTES = 1 << 20
# Frames that a worker compresses together.
_SHARED_BLOCKS = 32


def encode_blocks(
    records: Iterable[Bytes],
    encoding: Encoding,
    first_slot: int,
    pack_id: int,
    compress: Callable[[bytes], bytes] | None = None,
    table: int = 0,
    pool: ThreadPoolExecutor | None = None,
) -> Iterator[Buffer]:
    """Yield the blocks of a chunk: raw ones padded to their fixed size, many together, or one frame
    each.

    Parameters
    ----------
    records : iterable of ndarray
        uint8 (rows, record_bytes), of any numbers of rows.
    encoding : Encoding
        Frame, and the rows in a block.
    first_slot : int
        Slot of the chunk's first row, which seeds the checksums.
    pack_id : int
        Seeds them too.
    compress : callable, optional
        Makes one frame of a block's records, in place of the encoding's own; not for ``raw``.
    table : int
        Number of the chunk's table in the pack, which seeds them too.
    pool : ThreadPoolExecutor, optional
        Workers that share the compression.
    """
    rows, framed = encoding.rows_per_block, FRAMES[encoding.frame].compress
    place, record = first_slot + table * TABLE_PLACES, encoding.record()
    if framed is not None and compress is None:
        compress = partial(framed, record)
    for part in _whole_blocks(records, rows):
        if compress is None or framed is None:
            yield from _raw_blocks(part, rows, pack_id, place)
        else:
            work = partial(_framed_blocks, part, rows, pack_id, place, compress)
            starts = range(0, len(part), _SHARED_BLOCKS * rows)
            for blocks in map(work, starts) if pool is None else pool.map(work, starts):
                yield from blocks
        place += len(part)


def _framed_blocks(
    records: Bytes,
    rows: int,
    pack_id: int,
    place: int,
    compress: Callable[[bytes], bytes],
    first: int,
) -> list[bytes]:
    """Return some frames of `records`, the first of which begins with row `first`."""
    blocks = []
    for start in range(first, min(first + _SHARED_BLOCKS * rows, len(records)), rows):
        payload = compress(records[start : start + rows].tobytes())
        checksum = place_checksum(payload, pack_id, place + start)
        blocks.append(payload + checksum.to_bytes(CHECKSUM_BYTES, "little"))
    return blocks


def _whole_blocks(records: Iterable[Bytes], rows: int) -> Iterator[Bytes]:
    """Cut arrays of rows anew, so that all but the last one hold a whole number of blocks."""
    left: Bytes | None = None
    for part in records:
        joined = part if left is None or not len(left) else np.concatenate([left, part])
        whole = len(joined) // rows * rows
        if whole:
            yield joined[:whole]
        left = joined[whole:].copy()
    if left is not None and len(left):
        yield left


def _raw_blocks(records: Bytes, rows: int, pack_id: int, place: int) -> Iterator[memoryview]:
    """Yield the raw blocks of `records`, many together, the first one at `place`.

    As many as the caches of a processor hold: they are copied, summed and written.
    """
    record_bytes = records.shape[1]
    block_bytes, size = raw_block_bytes(record_bytes, rows), rows * record_bytes
    together = max(1, _RAW_BYTES // block_bytes)
    for first in range(0, len(records), together * rows):
        some = records[first : first + together * rows]
        blocks = np.zeros((-(-len(some) // rows), block_bytes), np.uint8)
        whole, rest = divmod(len(some), rows)
        blocks[:whole, :size] = some[: whole * rows].reshape(whole, size)
        if rest:
            blocks[whole, : rest * record_bytes] = some[whole * rows :].reshape(-1)
        payloads, start = blocks[:, :-CHECKSUM_BYTES], place + first
        sums = [
            place_checksum(one.data, pack_id, start + n * rows) for n, one in enumerate(payloads)
        ]
        blocks[:, -CHECKSUM_BYTES:] = np.array(sums, "<u4")[:, None].view(np.uint8)
        yield blocks.reshape(-1).data


def stored_bytes(records: Bytes, encoding: Encoding) -> int:
    """Bytes of a chunk of `records`, uint8 (rows, record_bytes): its blocks with their padding and
    checksums, and its index if they are frames.
    """
    lengths = [len(block) for block in encode_blocks([records], encoding, 0, 0)]
    return sum(lengths) + (index_bytes(len(lengths)) if encoding.is_compressed else 0)
