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

# Bytes of blocks that are made together: what a processor's cache holds.
_TOGETHER_BYTES = 1 << 18


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
    rows, frame, record = encoding.rows_per_block, FRAMES[encoding.frame], encoding.record()
    place = first_slot + table * TABLE_PLACES
    together = max(1, _TOGETHER_BYTES // raw_block_bytes(record.record_bytes, rows)) * rows
    make = partial(_raw_blocks, rows)
    if frame.compress is not None:
        own = partial(frame.compress, record)
        given = None if compress is None else partial(_compress_each, compress)
        make = partial(_framed_blocks, rows, given or own)
    for part in _whole_blocks(records, rows):
        pieces = [part[n : n + together] for n in range(0, len(part), together)]
        places = range(place, place + len(part), together)
        work = partial(make, pack_id)
        for blocks in map(work, places, pieces) if pool is None else pool.map(work, places, pieces):
            yield from blocks
        place += len(part)


def _compress_each(compress: Callable[[bytes], bytes], data: bytes, blocks: int) -> list[bytes]:
    size = len(data) // blocks
    return [compress(data[n * size : (n + 1) * size]) for n in range(blocks)]


def _framed_blocks(
    rows: int,
    compress: Callable[[bytes, int], list[bytes]],
    pack_id: int,
    place: int,
    records: Bytes,
) -> list[Buffer]:
    """Return the frames of `records`, the first at `place`; the last one may have fewer rows."""
    whole, rest = divmod(len(records), rows)
    payloads = compress(records[: whole * rows].tobytes(), whole) if whole else []
    payloads += compress(records[whole * rows :].tobytes(), 1) if rest else []
    blocks: list[Buffer] = []
    for n, payload in enumerate(payloads):
        checksum = place_checksum(payload, pack_id, place + n * rows)
        blocks.append(payload + checksum.to_bytes(CHECKSUM_BYTES, "little"))
    return blocks


def _raw_blocks(rows: int, pack_id: int, place: int, records: Bytes) -> list[Buffer]:
    """Return the raw blocks of `records` as one piece, the first at `place`."""
    size = rows * records.shape[1]
    whole, rest = divmod(len(records), rows)
    count, block_bytes = whole + (rest > 0), raw_block_bytes(records.shape[1], rows)
    blocks = np.zeros((count, block_bytes), np.uint8)
    blocks[:whole, :size] = records[: whole * rows].reshape(whole, size)
    if rest:
        blocks[whole, : rest * records.shape[1]] = records[whole * rows :].reshape(-1)
    payloads = blocks[:, :-CHECKSUM_BYTES]
    sums = [place_checksum(one.data, pack_id, place + n * rows) for n, one in enumerate(payloads)]
    blocks[:, -CHECKSUM_BYTES:] = np.array(sums, "<u4")[:, None].view(np.uint8)
    return [blocks.reshape(-1).data]


def _whole_blocks(records: Iterable[Bytes], rows: int) -> Iterator[Bytes]:
    """Cut arrays of rows anew, so that all but the last one hold a whole number of blocks."""
    left: Bytes | None = None
    for part in records:
        begin = 0
        if left is not None and len(left):  # complete the block that was begun
            begin = min(rows - len(left), len(part))
            left = np.concatenate([left, part[:begin]])
            if len(left) < rows:
                continue
            yield left
        end = begin + (len(part) - begin) // rows * rows
        if end > begin:
            yield part[begin:end]
        left = part[end:].copy()
    if left is not None and len(left):
        yield left


def stored_bytes(records: Bytes, encoding: Encoding) -> int:
    """Bytes of a chunk of `records`, uint8 (rows, record_bytes): its blocks with their padding and
    checksums, and its index if they are frames.
    """
    lengths = [len(block) for block in encode_blocks([records], encoding, 0, 0)]
    return sum(lengths) + (index_bytes(len(lengths)) if encoding.is_compressed else 0)
