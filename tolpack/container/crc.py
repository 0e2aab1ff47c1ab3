"""CRC-32 of stored bytes (SPEC §2, §8): zlib's, or zlib-ng's, an order of magnitude faster.

``pip install 'tolpack[fast]'`` brings zlib-ng; both give the same numbers (docs/integrity.md).
"""

from __future__ import annotations

import struct

from tolpack.errors import ChecksumError

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:
    from zlib import crc32

__all__ = [
    "CHECKSUM_BYTES", "INDEX_PLACE", "TABLE_PLACES", "compare", "crc32", "low_bytes",
    "place_checksum",
]  # fmt: skip

CHECKSUM_BYTES = 4
INDEX_PLACE = 1 << 63
# The slots of a table have so many places: those of table t begin at t times it.
TABLE_PLACES = 1 << 48
_PLACE = struct.Struct("<QQ")


def place_checksum(payload: bytes | memoryview, pack_id: int, place: int) -> int:
    """CRC-32 of pack id, place and `payload`: the same bytes have another one elsewhere.

    `place` is the slot of a block's first row plus `TABLE_PLACES` times the number of its table; of
    an index block, `INDEX_PLACE` plus the place of the first row that it covers.
    """
    return crc32(payload, crc32(_PLACE.pack(pack_id, place)))


def low_bytes(checksum: int, count: int) -> bytes:
    """Return the lowest `count` bytes of a checksum, as they are stored."""
    return checksum.to_bytes(4, "little")[:count]


def compare(code: str, place: str, found: int, stored: int) -> None:
    """Raise `ChecksumError` unless the CRC-32 `found` is the `stored` one."""
    if found != stored:
        raise ChecksumError(code, place, f"CRC-32 {found:08x}", f"{stored:08x}")
