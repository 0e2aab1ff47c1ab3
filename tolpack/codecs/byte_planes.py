"""Records cut into byte planes, ahead of zstd (SPEC §8, frame ``zstd-planes``).

The exponents of weights take few of their values and compress; their mantissas are noise. So each
number of 2 or 4 bytes is rotated left by one bit, which fills its highest byte with the exponent
and moves the sign to the lowest bit; then all highest bytes stand together, and so on (the byte
shuffle of HDF5 and Blosc). DFloat11 (Zhang et al. 2025) codes the same exponents with the same
coder, Huffman's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tolpack.runtime.array_types import Bytes

# Bytes of a word that are told apart, in the order of their planes.
WORD_BYTES = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one size in the scales or in the codes of a record.

    Parameters
    ----------
    size : int
        Bytes of a word.
    spans : tuple of slice
        Where in a record they stand, in bytes, ascending.
    """

    size: int
    spans: tuple[slice, ...]

    @property
    def record_bytes(self) -> int:
        """Bytes that they take in a record."""
        return sum(span.stop - span.start for span in self.spans)


@dataclass(frozen=True, slots=True)
class RecordWords:
    """Bytes of a record, and the words in it in the order of their planes."""

    record_bytes: int
    words: tuple[Words, ...]


def split_planes(data: bytes, record: RecordWords) -> list[bytes]:
    """Return the planes of a block's records, whose bytes are `data`, in the order of a frame."""
    records = np.frombuffer(data, np.uint8).reshape(-1, record.record_bytes)
    planes: list[bytes] = []
    for own in record.words:
        taken = np.concatenate([records[:, span] for span in own.spans], axis=1)
        words = taken.view(f"<u{own.size}").ravel()
        if own.size > 1:
            rotated = words << 1
            rotated |= words >> (8 * own.size - 1)
            words = rotated.astype(words.dtype, copy=False)
        columns = words.view(np.uint8).reshape(-1, own.size).T
        planes += [column.tobytes() for column in columns]
    return planes


def join_planes(content: bytes, rows: int, record: RecordWords) -> Bytes:
    """Return the records that planes, one after the other in `content`, stand for: uint8 (rows,
    record_bytes). `content` has rows · record_bytes bytes.
    """
    if len(record.words) == 1:
        return _joined(content, 0, rows, record.words[0])
    out, start = np.empty((rows, record.record_bytes), np.uint8), 0
    for own in record.words:
        found, at = _joined(content, start, rows, own), 0
        for span in own.spans:
            length = span.stop - span.start
            out[:, span] = found[:, at : at + length]
            at += length
        start += found.size
    return out


def _joined(content: bytes, start: int, rows: int, own: Words) -> Bytes:
    """Return the words of the planes from `start` on: uint8 (rows, bytes in a record)."""
    size, length = own.size, rows * own.record_bytes
    planes = np.frombuffer(content, np.uint8, length, start).reshape(size, -1)
    if size == 1:
        return planes.reshape(rows, -1)
    rotated = planes[-1].astype(f"<u{size}")
    for plane in planes[-2::-1]:
        rotated <<= 8
        rotated |= plane
    words = np.right_shift(rotated, 1, out=np.empty_like(rotated))
    rotated <<= 8 * size - 1
    words |= rotated
    found: Bytes = words.view(np.uint8).reshape(rows, -1)
    return found
