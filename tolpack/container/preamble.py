"""The first 64 bytes of a pack, alignment, and the fixed limits (SPEC §2, §3).

A fixed-size preamble tells a reader everything it needs before it allocates anything: whether it
can read the file at all, how long the header is and how long the file has to be.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tolpack.codecs.frames import FRAMES
from tolpack.codecs.registry import CODECS
from tolpack.container.crc import crc32
from tolpack.errors import ChecksumError, FormatError, UnsupportedVersionError

MAGIC = b"\x89TOLPACK"
VERSION = (1, 2)
PREAMBLE_BYTES = 64
# Of sections, in bytes: of packs that say nothing, and of those that state another one.
SECTION_ALIGNMENT, SMALL_SECTION_ALIGNMENT = 4096, 64
BLOCK_ALIGNMENT = 64

MAX_HEADER_BYTES = 1 << 20
MAX_NESTING = 16
MAX_NAME = 128
MAX_TABLES = 1 << 12
MAX_CHUNKS = 1 << 16
MAX_SECTIONS = 4 * MAX_CHUNKS
MAX_CLASS_ROWS = MAX_SECTIONS
MAX_FIELDS = 1 << 12
MAX_PARTS = 16
MAX_WIDTH = 1 << 16
MAX_ROWS = 1 << 48
MAX_ROW_VALUES = 1 << 24
MAX_BLOCK_BYTES = 1 << 24
MAX_ROWS_PER_BLOCK = 1 << 12
MAX_ARRAY_BYTES = (1 << 32) - 1
MAX_FILES = 1 << 16
MAX_HEADS = 1 << 12
MAX_ORDER = 1 << 6

# magic, major, minor, header length, file length, required features, optional features, pack id,
# reserved, header CRC-32, preamble CRC-32
_LAYOUT = struct.Struct("<8sHHIQQQQQII")

# Bit numbers of the required-feature mask (SPEC §9). A reader refuses a bit that it does not know.
FEATURES = {
    **{f"codec:{name}": codec.feature_bit for name, codec in CODECS.items()},
    **{f"frame:{name}": frame.feature_bit for name, frame in FRAMES.items() if frame.feature_bit},
    "basis": 16,
    "mean": 17,
    "token_map": 18,
    "multiplier": 19,
    "coded_basis": 21,
    "id_map": 22,
    "entropy_coded_basis": 23,
    "part_file": 24,
    "multiple_tables": 25,
    "mixed_widths": 26,
    "other_layers": 27,
    "short_token_map": 48,
    "token_chunks": 49,
    "edits": 50,
    "section_alignment": 56,
}
# What a part file of a pack has, and no pack (SPEC §15).
PART_FILE_FEATURES = 1 << FEATURES["part_file"]
SUPPORTED_FEATURES = sum(1 << bit for bit in FEATURES.values()) & ~PART_FILE_FEATURES
# What packs of `VERSION` have not, and the version that has it.
_NEWER = ("frame:ans", "entropy_coded_basis", "short_token_map", "token_chunks", "edits",
          "section_alignment")  # fmt: skip
_NEWER_VERSION = (1, 4)


@dataclass(frozen=True, slots=True)
class Preamble:
    """Decoded preamble; lengths in bytes, features as bit masks."""

    header_length: int
    file_length: int
    required_features: int
    pack_id: int
    header_crc32: int
    optional_features: int = 0
    version: tuple[int, int] = VERSION

    def to_bytes(self) -> bytes:
        """Return the 64 bytes, checksum included."""
        major, minor = self.version
        head = _LAYOUT.pack(
            MAGIC,
            major,
            minor,
            self.header_length,
            self.file_length,
            self.required_features,
            self.optional_features,
            self.pack_id,
            0,
            self.header_crc32,
            0,
        )[:-4]
        return head + struct.pack("<I", crc32(head))


def parse_preamble(data: bytes, file_length: int, features: int = SUPPORTED_FEATURES) -> Preamble:
    """Decode and check the first 64 bytes of a file of `file_length` bytes, of a kind that may have
    `features`.

    The order of checks matters: identity, then version, then integrity, then features, so that a
    newer file is called newer rather than damaged.

    Raises
    ------
    FormatError, ChecksumError, UnsupportedVersionError
        By the first check that fails.
    """
    if len(data) < PREAMBLE_BYTES:
        raise FormatError("truncated", "preamble", f"{len(data)} bytes", f"{PREAMBLE_BYTES} bytes")
    values = _LAYOUT.unpack(data[:PREAMBLE_BYTES])
    magic, major, minor, header_length, declared, required, optional, pack_id = values[:8]
    reserved, header_crc, crc = values[8:]
    if magic != MAGIC:
        raise FormatError("bad-magic", "preamble", magic.hex(" "), f"{MAGIC.hex(' ')} (a pack)")
    if major != VERSION[0]:
        raise UnsupportedVersionError(
            "unsupported-version", "preamble", f"format {major}.{minor}", f"format {VERSION[0]}.x"
        )
    if crc32(data[: PREAMBLE_BYTES - 4]) != crc:
        raise ChecksumError("preamble-checksum", "preamble", "other bytes", f"CRC-32 {crc:08x}")
    if required & ~features:
        raise _unsupported(required & ~features)
    if reserved:
        raise FormatError("reserved-not-zero", "preamble.reserved", reserved, 0)
    if not 2 <= header_length <= MAX_HEADER_BYTES:
        raise FormatError(
            "header-length", "preamble.header_length", header_length, f"2 … {MAX_HEADER_BYTES}"
        )
    if declared != file_length:
        code = "truncated" if declared > file_length else "trailing-bytes"
        raise FormatError(code, "file", f"{file_length} bytes", f"{declared} bytes")
    version = (major, minor)
    return Preamble(header_length, declared, required, pack_id, header_crc, optional, version)


def version_of(required_features: int) -> tuple[int, int]:
    """Return the version that a pack with these features states."""
    newer = sum(1 << FEATURES[name] for name in _NEWER)
    return _NEWER_VERSION if required_features & newer else VERSION


def align(offset: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is at least `offset`."""
    return -(-offset // alignment) * alignment


def _unsupported(mask: int) -> UnsupportedVersionError:
    found, remedy = _feature_names(mask), "features this version of tolpack reads: upgrade tolpack"
    if mask == PART_FILE_FEATURES:
        found, remedy = "a part file of a pack", "a pack: open the manifest.json beside it"
    place = "preamble.required_features"
    return UnsupportedVersionError("unsupported-feature", place, found, remedy)


def _feature_names(mask: int) -> str:
    known = {bit: name for name, bit in FEATURES.items()}
    bits = [bit for bit in range(64) if mask >> bit & 1]
    return ", ".join(known.get(bit, f"feature bit {bit}") for bit in bits)
