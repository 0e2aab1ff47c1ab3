"""Bytes of a block in the file, and of its length in an index: they follow from the encoding
(SPEC §8).

Raw blocks have a fixed size, others one up to a longest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tolpack.codecs.ans.payload_sizes import longest_payload, shortest_payload
from tolpack.codecs.encodings import Encoding
from tolpack.codecs.frames import FRAMES, ZSTD_FRAMES
from tolpack.container.crc import CHECKSUM_BYTES
from tolpack.container.preamble import BLOCK_ALIGNMENT, align

# Of an entropy-coded basis: bytes of a row's scale, and values that a byte stands for at most.
_BASIS_SCALE_BYTES, _MOST_VALUES_A_BYTE = 2, 16


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """What follows from an encoding for each of its blocks, in bytes.

    ``checksum_bytes``: of the checksum at a block's end. ``shortest`` and ``longest``: a block's
    length, checksum included; of raw blocks both are the one that all of them have.
    ``length_bytes``: what a block's length takes in an index, at most where no index is known.
    """

    checksum_bytes: int
    shortest: int
    longest: int
    length_bytes: int


def block_sizes(encoding: Encoding, record_bytes: int) -> BlockSizes:
    """Return the sizes of the blocks of an encoding, whose records have `record_bytes` bytes."""
    checksum = checksum_bytes(encoding)
    if encoding.coder is not None:
        lanes, values = encoding.coder.lanes, encoding.values * encoding.rows_per_block
        longest = longest_payload(lanes, values) + checksum
        return BlockSizes(checksum, shortest_payload(lanes) + checksum, longest, 4)
    if not encoding.is_compressed:
        size = raw_block_bytes(record_bytes, encoding.rows_per_block)
        return BlockSizes(checksum, size, size, 4)
    longest = longest_frame(encoding.frame, record_bytes * encoding.rows_per_block)
    return BlockSizes(checksum, checksum + 1, longest, 4)


def coded_basis_bytes(lanes: int, rank: int, width: int) -> tuple[int, int]:
    """Least and most bytes of an entropy-coded basis: the scales of its rows, and a payload.

    So that few bytes do not become a huge array, it takes half a bit a value at least.
    """
    scales = rank * _BASIS_SCALE_BYTES
    least = max(scales + shortest_payload(lanes), -(-rank * width // _MOST_VALUES_A_BYTE))
    return least, scales + longest_payload(lanes, rank * width)


def checksum_bytes(encoding: Encoding) -> int:
    """Bytes of the checksum that a block of an encoding ends with."""
    return FRAMES[encoding.frame].checksum_bytes


def raw_block_bytes(record_bytes: int, rows_per_block: int) -> int:
    """Bytes of one raw block: records, zero padding, CRC-32 in the last four bytes."""
    return align(record_bytes * rows_per_block + CHECKSUM_BYTES, BLOCK_ALIGNMENT)


def longest_frame(frame: str, records_bytes: int) -> int:
    """Bytes of the longest frame of zstd that holds `records_bytes` (zstd's own bound), its
    checksum included.
    """
    content_bytes = ZSTD_FRAMES[frame].longest_content(records_bytes)
    return content_bytes + content_bytes // 256 + 64 + CHECKSUM_BYTES
