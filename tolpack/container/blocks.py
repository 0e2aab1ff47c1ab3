"""Blocks of a chunk from its records: the unit that is stored, checked and read (SPEC §6, §8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import Encoding
from tolpack.codecs.frames import FRAMES
from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.crc import CHECKSUM_BYTES, TABLE_PLACES, place_checksum
from tolpack.container.index import index_bytes


def encode_blocks(
    records: Iterable[NDArray[np.uint8]],
    encoding: Encoding,
    first_slot: int,
    pack_id: int,
    compress: Callable[[bytes], bytes] | None = None,
    table: int = 0,
) -> Iterator[bytes]:
    """Yield the blocks of a chunk: raw ones padded to their fixed size, or one frame each.

    Parameters
    ----------
    records : iterable of ndarray
        uint8 (rows, record_bytes); every one but the last is a whole number of blocks.
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
    """
    place, rows = first_slot + table * TABLE_PLACES, encoding.rows_per_block
    framed, record = FRAMES[encoding.frame].compress, encoding.record()
    room = raw_block_bytes(record.record_bytes, rows) - CHECKSUM_BYTES
    for part in records:
        for start in range(0, len(part), rows):
            data = part[start : start + rows].tobytes()
            if framed is None:
                payload = data.ljust(room, b"\0")
            else:
                payload = framed(record, data) if compress is None else compress(data)
            yield payload + place_checksum(payload, pack_id, place).to_bytes(
                CHECKSUM_BYTES, "little"
            )
            place += rows


def stored_bytes(records: NDArray[np.uint8], encoding: Encoding) -> int:
    """Bytes of a chunk of `records`, uint8 (rows, record_bytes): its blocks with their padding and
    checksums, and its index if they are frames.
    """
    lengths = [len(block) for block in encode_blocks([records], encoding, 0, 0)]
    return sum(lengths) + (index_bytes(len(lengths)) if encoding.is_compressed else 0)
