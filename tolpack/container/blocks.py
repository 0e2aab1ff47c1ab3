"""Blocks of a chunk from its records: the unit that is stored, checked and read (SPEC §6, §8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.encodings import Encoding
from tolpack.codecs.frames import ZSTD_FRAMES
from tolpack.container.block_sizes import checksum_bytes, raw_block_bytes
from tolpack.container.crc import CHECKSUM_BYTES, TABLE_PLACES, low_bytes, place_checksum
from tolpack.container.index import fewest_length_bytes, index_bytes
from tolpack.runtime.array_types import Buffer, Bytes

# Bytes of blocks that are made together: what a processor's cache holds. An entropy coder takes
# more, as it codes a value of all of them at a time.
_TOGETHER_BYTES, _CODED_TOGETHER_BYTES = 1 << 18, 1 << 21
# Gives the payloads of the blocks of some records, uint8 (rows, record_bytes), of which the last
# one may have fewer rows.
_Payloads = Callable[[Bytes], list[bytes]]


def encode_blocks(
    records: Iterable[Bytes],
    encoding: Encoding,
    first_slot: int,
    pack_id: int,
    compress: Callable[[bytes], bytes] | None = None,
    table: int = 0,
    pool: ThreadPoolExecutor | None = None,
    coder: RecordCoder | None = None,
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
        Makes one frame of a block's records, in place of the encoding's own; for frames of zstd.
    table : int
        Number of the chunk's table in the pack, which seeds them too.
    pool : ThreadPoolExecutor, optional
        Workers that share the compression.
    coder : RecordCoder, optional
        Codes the records, with frame ``ans``.

    Raises
    ------
    ConfigError
        A code is in no symbol of its model.
    """
    rows, block_bytes = encoding.rows_per_block, encoding.record().record_bytes
    block_bytes = raw_block_bytes(block_bytes, rows)
    place = first_slot + table * TABLE_PLACES
    together_bytes = _TOGETHER_BYTES if coder is None else _CODED_TOGETHER_BYTES
    together = max(1, together_bytes // block_bytes) * rows
    make = partial(_raw_blocks, rows)
    if encoding.is_compressed:
        if coder is None:
            payloads = _zstd_payloads(encoding, compress)
        else:
            payloads = partial(coder.encode_records, rows_per_block=rows)
        make = partial(_framed_blocks, rows, checksum_bytes(encoding), payloads)
    for part in _whole_blocks(records, rows):
        pieces = [part[n : n + together] for n in range(0, len(part), together)]
        places = range(place, place + len(part), together)
        work = partial(make, pack_id)
        for blocks in map(work, places, pieces) if pool is None else pool.map(work, places, pieces):
            yield from blocks
        place += len(part)


def _zstd_payloads(encoding: Encoding, compress: Callable[[bytes], bytes] | None) -> _Payloads:
    """Return the function that makes frames of zstd: by `compress`, or the encoding's own."""
    rows, frame = encoding.rows_per_block, ZSTD_FRAMES[encoding.frame]
    own = partial(frame.compress, encoding.record())
    many = own if compress is None else partial(_compress_each, compress)

    def payloads(records: Bytes) -> list[bytes]:
        whole, rest = divmod(len(records), rows)
        found = many(records[: whole * rows].tobytes(), whole) if whole else []
        return found + (many(records[whole * rows :].tobytes(), 1) if rest else [])

    return payloads


def _compress_each(compress: Callable[[bytes], bytes], data: bytes, blocks: int) -> list[bytes]:
    size = len(data) // blocks
    return [compress(data[n * size : (n + 1) * size]) for n in range(blocks)]


def _framed_blocks(
    rows: int, checksum_size: int, payloads: _Payloads, pack_id: int, place: int, records: Bytes
) -> list[Buffer]:
    """Return the blocks of `records`, the first at `place`; the last one may have fewer rows."""
    blocks: list[Buffer] = []
    for n, payload in enumerate(payloads(records)):
        checksum = place_checksum(payload, pack_id, place + n * rows)
        blocks.append(payload + low_bytes(checksum, checksum_size))
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
    """Cut arrays of rows again, so that all but the last one hold a whole number of blocks."""
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


def stored_bytes(records: Bytes, encoding: Encoding, coder: RecordCoder | None = None) -> int:
    """Bytes of a chunk of `records`, uint8 (rows, record_bytes): its blocks with their padding and
    checksums, and its index if they are frames. `coder`: as of `encode_blocks`.
    """
    lengths = [len(block) for block in encode_blocks([records], encoding, 0, 0, coder=coder)]
    if not encoding.is_compressed:
        return sum(lengths)
    each = 4 if encoding.coder is None else fewest_length_bytes(lengths)
    return sum(lengths) + index_bytes(len(lengths), each)
