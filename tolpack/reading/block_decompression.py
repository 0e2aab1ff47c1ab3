"""From the blocks of a chunk to the records in them, decompressed."""

from __future__ import annotations

from tolpack.codecs.frames import FRAMES
from tolpack.container.verified_reader import Container
from tolpack.runtime.array_types import Bytes


def read_block(container: Container, number: int, block: int) -> Bytes:
    """Read the records of block `block` of chunk `number`: uint8 (rows, record_bytes).

    Raises
    ------
    FormatError
        Code ``index-checksum``, ``frame-extent``, ``block-checksum`` or ``frame``.
    """
    return decompress_block(container, container.block(number, block), number, block)


def decompress_block(container: Container, payload: memoryview, number: int, block: int) -> Bytes:
    """Take the records out of a block's checked payload, decompressing it if it is a frame.

    Raises
    ------
    FormatError
        Code ``frame``.
    """
    view = container.chunks[number]
    place = f"{container.chunk_name(number)}, block {block}"
    frame = FRAMES[view.encoding.frame]
    return frame.records(payload, view.block_rows(block), view.record, place)
