"""The index of a chunk's frames: blocks that are fetched and checked one at a time.

An index block covers 512 frames: the first frame's offset in the chunk (u64), each frame's
length with its checksum (u32, or u16 where the longest one fits), and a CRC-32. Block *k* stands at
a fixed place, so a lookup in a table of any size fetches one block of 1 or 2 KiB and opening
fetches none (SPEC §8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tolpack.container.block_sizes import BlockSizes
from tolpack.container.crc import INDEX_PLACE, TABLE_PLACES, compare, place_checksum
from tolpack.errors import FormatError

FRAMES_PER_INDEX_BLOCK = 512
_FIXED_BYTES = 12


def index_bytes(frames: int, length_bytes: int = 4) -> int:
    """Bytes of the index section of a chunk of `frames` frames, whose lengths take `length_bytes`
    each.
    """
    blocks = -(-frames // FRAMES_PER_INDEX_BLOCK)
    return blocks * _FIXED_BYTES + length_bytes * frames


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
    every frame but the last holds `rows_per_block` rows. Lengths take `length_bytes` each.
    """
    parts, offset = [], 0
    for start in range(0, len(lengths), FRAMES_PER_INDEX_BLOCK):
        part = np.asarray(lengths[start : start + FRAMES_PER_INDEX_BLOCK], f"<u{length_bytes}")
        body = np.uint64(offset).astype("<u8").tobytes() + part.tobytes()
        place = INDEX_PLACE + first_place + start * rows_per_block
        parts += [body, place_checksum(body, pack_id, place).to_bytes(4, "little")]
        offset += int(part.sum(dtype=np.uint64))
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
    start = int.from_bytes(body[:8], "little")
    lengths = np.frombuffer(body[8:], f"<u{sizes.length_bytes}").astype(np.int64)
    end = start + int(lengths.sum())
    if end > chunk_bytes or lengths.min() < sizes.shortest or lengths.max() > sizes.longest:
        raise FormatError("frame-extent", place, f"frames up to byte {end}", f"≤ {chunk_bytes}")
    return start + np.concatenate([[0], np.cumsum(lengths)])
