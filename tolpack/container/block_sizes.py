"""Bytes of a block in the file: raw ones of a fixed size, frames up to a longest one (SPEC §8)."""

from __future__ import annotations

from tolpack.codecs.frames import FRAMES
from tolpack.container.crc import CHECKSUM_BYTES
from tolpack.container.preamble import BLOCK_ALIGNMENT, align


def raw_block_bytes(record_bytes: int, rows_per_block: int) -> int:
    """Bytes of one raw block: records, zero padding, CRC-32 in the last four bytes."""
    return align(record_bytes * rows_per_block + CHECKSUM_BYTES, BLOCK_ALIGNMENT)


def longest_frame(frame: str, records_bytes: int) -> int:
    """Bytes of the longest frame of `records_bytes` (zstd's own bound), its checksum included."""
    content_bytes = FRAMES[frame].longest_content(records_bytes)
    return content_bytes + content_bytes // 256 + 64 + CHECKSUM_BYTES
