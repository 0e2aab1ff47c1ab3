"""The contents of a pack's sections, checked beyond their checksums: token map, arrays, records.

What stands behind a right checksum may still make no sense; these functions give nothing that does
not follow the specification. They keep nothing: what stays resident is `tolpack.pack`'s part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.frames import decompress, decompress_runs
from tolpack.codecs.values import Bytes, Floats, decode_values
from tolpack.container.reader import Container
from tolpack.errors import FormatError


def read_token_map(container: Container, number: int) -> NDArray[np.integer[Any]]:
    """Read section `number`: the slot of each token id, unsigned (rows,), a copy.

    Raises
    ------
    FormatError
        Code ``array-checksum`` or ``token-map`` (no permutation).
    """
    # A copy: what was checked must not change afterwards under a mapped file.
    slots: NDArray[np.integer[Any]] = container.array(number).copy()  # type: ignore[assignment]
    seen = np.zeros(len(slots), bool)
    if (slots < np.uint64(len(slots))).all():
        seen[slots.astype(np.int64)] = True
    if not seen.all():
        raise FormatError("token-map", "token map", "no permutation", "each slot exactly once")
    return slots


def read_floats(container: Container, number: int) -> Floats:
    """Read section `number`, a basis (coded or not) or a mean, as float32: a copy.

    Raises
    ------
    FormatError
        Code ``array-checksum``, ``array-not-finite`` or ``scale-not-finite``.
    """
    stored, part = container.array(number), container.header.sections[number].part
    if part is not None:
        rows: Bytes = stored.astype(np.uint8)
        return decode_values(rows[:, : part.scale_bytes], rows[:, part.scale_bytes :], part)
    array = stored.astype(np.float32)
    if not np.isfinite(array).all():
        raise FormatError("array-not-finite", f"sections[{number}]", "NaN or Inf", "finite")
    return array


def read_records(container: Container, number: int, block: int) -> Bytes:
    """Read the records of block `block` of chunk `number`: uint8 (rows, record_bytes).

    Raises
    ------
    FormatError
        Code ``index-checksum``, ``frame-extent``, ``block-checksum`` or ``frame``.
    """
    return open_records(container, container.block(number, block), number, block)


def open_records(container: Container, payload: memoryview, number: int, block: int) -> Bytes:
    """Take the records out of a block's payload, decompressing it if it is a frame."""
    view = container.chunks[number]
    rows = view.block_rows(block)
    size, place = rows * view.record_bytes, f"chunk {number}, block {block}"
    if view.encoding.frame == "zstd-runs":
        return decompress_runs(payload, rows, view.record_bytes, place)
    data: bytes | memoryview = payload
    if view.encoding.frame == "zstd":
        data = decompress(payload, size, place)
    records = np.frombuffer(data, np.uint8, size)
    return records.reshape(rows, view.record_bytes)
