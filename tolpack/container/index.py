"""The index of a chunk's frames: blocks that are fetched and checked one at a time.

An index block covers 512 frames: the first frame's offset in the chunk (u64), each frame's length
with its checksum (u32), and a CRC-32. Where they fit, lengths of entropy-coded blocks take two
bytes each, or one above a shortest one, which then stands in the highest 16 bits of the offset.
Block *k* stands at a fixed place, so a lookup in a table of any size fetches one block of 0.5 to 2
KiB and opening fetches none (SPEC §8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tolpack.container.block_sizes import BlockSizes
from tolpack.container.crc import INDEX_PLACE, TABLE_PLACES, compare, place_checksum
from tolpack.errors import FormatError

FRAMES_PER_INDEX_BLOCK = 512
# What a length may take in an index.
LENGTH_BYTES = (1, 2, 4)
_FIXED_BYTES = 12
# Lengths of one byte are above a shortest one, which stands above an offset of so many bits.
_OFFSET_BITS, _MOST_SPREAD, _MOST_SHORTEST = 48, (1 << 8) - 1, (1 << 16) - 1


def index_bytes(frames: int, length_bytes: int = 4) -> int:
    """Bytes of the index section of a chunk of `frames` frames, whose lengths take `length_bytes`
    each.
    """
    blocks = -(-frames // FRAMES_PER_INDEX_BLOCK)
    return blocks * _FIXED_BYTES + length_bytes * frames


def length_bytes_of(index_section_bytes: int, frames: int) -> int:
    """Return what a length takes in an index section of `index_section_bytes`."""
    return (index_section_bytes - index_bytes(frames, 0)) // frames


def fewest_length_bytes(lengths: Sequence[int]) -> int:
    """Return the fewest bytes that hold each of the lengths of entropy-coded blocks."""
    every = np.asarray(lengths, np.int64)
    starts = np.arange(0, len(every), FRAMES_PER_INDEX_BLOCK)
    longest, shortest = np.maximum.reduceat(every, starts), np.minimum.reduceat(every, starts)
    fits = (longest - shortest).max() <= _MOST_SPREAD and shortest.max() <= _MOST_SHORTEST
    if fits and every.sum() < 1 << _OFFSET_BITS:
        return 1
    return 2 if longest.max() < 1 << 16 else 4


def index_block_extent(block: int, frames: int, length_bytes: int = 4) -> tuple[int, int]:
    """Offset in the index section and length, in bytes, of index block `block`; else as
    `index_bytes`.
    """
    count = min(FRAMES_PER_INDEX_BLOCK, frames - block * FRAMES_PER_INDEX_BLOCK)
    full = _FIXED_BYTES + length_bytes * FRAMES_PER_INDEX_BLOCK
    return block * full, _FIXED_BYTES + length_bytes * count


def encode_index(
    lengths: Sequence[int],
    pack_id: int,
    first_place: int,
    rows_per_block: int,
    length_bytes: int = 4,
) -> bytes:
    """Return the index section for frames of `lengths` bytes, stored back to back.

    `first_place` is that of the chunk's first row, see `tolpack.container.crc.place_checksum`;
    every frame but the last holds `rows_per_block` rows. Lengths take `length_bytes` each, see
    `fewest_length_bytes`.
    """
    parts, offset = [], 0
    for start in range(0, len(lengths), FRAMES_PER_INDEX_BLOCK):
        part = np.asarray(lengths[start : start + FRAMES_PER_INDEX_BLOCK], np.int64)
        shortest = int(part.min()) if length_bytes == 1 else 0
        first = offset + (shortest << _OFFSET_BITS)
        body = first.to_bytes(8, "little") + (part - shortest).astype(f"<u{length_bytes}").tobytes()
        place = INDEX_PLACE + first_place + start * rows_per_block
        parts += [body, place_checksum(body, pack_id, place).to_bytes(4, "little")]
        offset += int(part.sum())
    return b"".join(parts)


def decode_index_block(
    data: bytes | memoryview,
    pack_id: int,
    first_place: int,
    chunk_bytes: int,
    sizes: BlockSizes,
    *,
    check: bool = True,
) -> NDArray[np.int64]:
    """Check one index block and return frame boundaries, int64 (frames + 1,), in the chunk.

    `first_place` is that of the first row that the block covers. Without `check` its checksum is
    not compared.

    Raises
    ------
    ChecksumError
        The block is damaged.
    FormatError
        A frame would lie outside the chunk's `chunk_bytes`, or has a length out of `sizes`.
    """
    place = f"the index of the frames from slot {first_place % TABLE_PLACES} on"
    body = memoryview(data)[:-4]
    if check:
        found = place_checksum(body, pack_id, INDEX_PLACE + first_place)
        compare("index-checksum", place, found, int.from_bytes(data[-4:], "little"))
    start, shortest = int.from_bytes(body[:8], "little"), 0
    if sizes.length_bytes == 1:
        start, shortest = start % (1 << _OFFSET_BITS), start >> _OFFSET_BITS
    lengths = np.frombuffer(body[8:], f"<u{sizes.length_bytes}").astype(np.int64) + shortest
    end = start + int(lengths.sum())
    if end > chunk_bytes or lengths.min() < sizes.shortest or lengths.max() > sizes.longest:
        raise FormatError("frame-extent", place, f"frames up to byte {end}", f"≤ {chunk_bytes}")
    return start + np.concatenate([[0], np.cumsum(lengths)])
