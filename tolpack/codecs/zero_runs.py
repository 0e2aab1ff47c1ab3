"""Run-length coding of zeros and small numbers, ahead of zstd (SPEC §8, frame ``zstd-runs``).

Where one step serves large and small components alike, most codes are zeros, and a Huffman code
spends at least one bit on each byte. So here a byte stands for up to 15 zeros *and* the small
number that ends them, much as JPEG codes its coefficients (ITU-T T.81, F.1.2.2).
"""

from __future__ import annotations

import numpy as np

from tolpack.codecs import kernels
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Bytes

_COUNT_BYTES = 4
_LITERAL = 8
# Symbols that are expanded together: numbers of 8 bytes stand for each.
_PIECE = 1 << 16
# By symbol: bytes that it stands for, and the number that ends them (0 also for a run alone).
_HIGH, _LOW = np.divmod(np.arange(256), 16)
_SPANS = np.where(_LOW == 0, 16 << _HIGH, _HIGH + 1)
_ENDS = np.where(_LOW < 8, _LOW, _LOW + 240).astype(np.uint8)
_ENDS[_LOW == _LITERAL] = 0


def encode_runs(array: Bytes) -> bytes:
    """Return the content of a ``zstd-runs`` frame for bytes in the order of its symbols."""
    at = np.flatnonzero(array)
    values = array[at]
    zeros = np.diff(at, prepend=-1) - 1
    sixteens, runs = np.divmod(zeros, 16)
    small = (values < _LITERAL) | (values > 256 - _LITERAL)
    ends = np.where(small, values & 15, _LITERAL)
    last = (runs << 4 | ends).astype(np.uint8)
    long = np.flatnonzero(sixteens)  # goes ahead of its end, the largest power of two first
    left = sixteens[long]
    counts = np.stack([left >> 15] + [left >> n & 1 for n in range(14, -1, -1)], axis=1)
    ahead = np.repeat(
        np.tile(np.arange(15, -1, -1, dtype=np.uint8) << 4, len(long)), counts.ravel()
    )
    symbols = np.insert(last, np.repeat(long, counts.sum(1)), ahead)
    count = len(symbols).to_bytes(_COUNT_BYTES, "little")
    return count + symbols.tobytes() + values[~small].tobytes()


def longest_content(size: int) -> int:
    """Bytes of the longest content for `size` bytes: a count, a symbol for each byte that is not
    zero and for each sixteen that are, and each byte once more.
    """
    return _COUNT_BYTES + 2 * size + size // 16


def decode_columns(content: bytes, rows: int, record_bytes: int, place: str) -> Bytes:
    """Return the records whose bytes, column by column, `content` stands for: uint8 (rows,
    record_bytes). Errors as of `decode_runs`.
    """
    compiled = kernels.loaded()
    if compiled is None:
        columns = decode_runs(content, rows * record_bytes, place).reshape(record_bytes, rows)
        return np.ascontiguousarray(columns.T)
    symbols, literals = _parts(content, rows * record_bytes, place)
    out = np.zeros((rows, record_bytes), np.uint8)
    fault = compiled.zero_runs(symbols, literals, out)
    if fault:
        found = ("too many bytes", f"{len(literals)} literals")[fault - 1]
        raise FormatError("frame", place, found, ("the record's bytes", "one an escape")[fault - 1])
    return out


def decode_runs(content: bytes, size: int, place: str) -> Bytes:
    """Return the bytes that `content` stands for, uint8 (size,).

    Raises
    ------
    FormatError
        Code ``frame``: it stands for more, or its parts do not fit together.
    """
    symbols, literals = _parts(content, size, place)
    out, at, used = np.zeros(size, np.uint8), 0, 0
    for start in range(0, len(symbols), _PIECE):
        some = symbols[start : start + _PIECE]
        last = np.cumsum(_SPANS[some]) + (at - 1)
        at = int(last[-1]) + 1
        if at > size:
            raise FormatError("frame", place, f"{at} bytes", f"at most {size} bytes")
        out[last] = _ENDS[some]
        escaped = last[some & 15 == _LITERAL]
        if used + len(escaped) <= len(literals):
            out[escaped] = literals[used : used + len(escaped)]
        used += len(escaped)
    if used != len(literals):
        raise FormatError("frame", place, f"{len(literals)} literals", f"{used}")
    return out


def _parts(content: bytes, size: int, place: str) -> tuple[Bytes, Bytes]:
    """Cut `content`, which stands for `size` bytes, into symbols and literals."""
    count = int.from_bytes(content[:_COUNT_BYTES], "little")
    if len(content) < _COUNT_BYTES + count:
        raise FormatError("frame", place, f"{len(content)} bytes", f"{count} symbols")
    if count > size:  # each gives a byte at least
        raise FormatError("frame", place, f"{count} symbols", f"at most {size}")
    symbols = np.frombuffer(content, np.uint8, count, _COUNT_BYTES)
    return symbols, np.frombuffer(content, np.uint8, offset=_COUNT_BYTES + count)
