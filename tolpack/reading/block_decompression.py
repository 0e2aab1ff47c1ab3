"""From the blocks of a chunk to the records in them, decompressed.

Entropy-coded blocks are decoded many at a time, as that is what their coder is fast at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tolpack.codecs.frames import ZSTD_FRAMES, raw_records
from tolpack.container.verified_reader import Container
from tolpack.runtime.array_types import Bytes


def decompress_block(container: Container, payload: memoryview, number: int, block: int) -> Bytes:
    """Take the records out of a block's checked payload: uint8 (rows, record_bytes).

    Raises
    ------
    FormatError
        Code ``frame``; or, where the models of an entropy coder are read for the first time,
        ``array-checksum``, ``code-models`` or ``code-classes``.
    """
    view = container.chunks[number]
    if view.encoding.coder is not None:
        return _decode(container, view.chunk.encoding, [(number, block)], [payload])
    rows = view.block_rows(block)
    if not view.encoding.is_compressed:
        return raw_records(payload, rows, view.record_bytes)
    frame, place = ZSTD_FRAMES[view.encoding.frame], _name(container, (number, block))
    return frame.records(payload, rows, view.record, place)


def decompress_blocks(
    container: Container, wanted: Sequence[tuple[int, int]], payloads: Sequence[memoryview]
) -> list[Bytes]:
    """Take the records out of the payloads of blocks, each given by the numbers of its chunk and of
    itself there; else as `decompress_block`. Those of one entropy coder are decoded together.
    """
    found: list[Bytes | None] = [None] * len(wanted)
    coded: dict[int, list[int]] = {}
    for n, (number, block) in enumerate(wanted):
        chunk = container.chunks[number]
        if chunk.encoding.coder is None:
            found[n] = decompress_block(container, payloads[n], number, block)
        else:
            coded.setdefault(chunk.chunk.encoding, []).append(n)
    for encoding, places in coded.items():
        blocks = [wanted[n] for n in places]
        records = _decode(container, encoding, blocks, [payloads[n] for n in places])
        for n, some in zip(places, np.split(records, np.cumsum(_rows(container, blocks))[:-1])):
            found[n] = some
    return [records for records in found if records is not None]


def _decode(
    container: Container,
    encoding: int,
    blocks: Sequence[tuple[int, int]],
    payloads: Sequence[memoryview],
) -> Bytes:
    """Decode payloads of one entropy coder: uint8 (rows of all blocks, record_bytes)."""
    coder = container.coders.of_encoding(encoding)
    return coder.decode_records(
        payloads, _rows(container, blocks), lambda n: _name(container, blocks[n])
    )


def _rows(container: Container, blocks: Sequence[tuple[int, int]]) -> list[int]:
    return [container.chunks[number].block_rows(block) for number, block in blocks]


def _name(container: Container, block: tuple[int, int]) -> str:
    return f"{container.chunk_name(block[0])}, block {block[1]}"
