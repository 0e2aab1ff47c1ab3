"""Sizes of stored values: what each codec needs per row (SPEC §6, §7).

The container must know how many bytes a record takes to check extents before anything is
allocated; what the bytes mean is `tolpack.codecs`' part.
"""

from __future__ import annotations

from dataclasses import dataclass

from tolpack.container.crc import CHECKSUM_BYTES
from tolpack.container.preamble import BLOCK_ALIGNMENT, align


@dataclass(frozen=True, slots=True)
class CodecSizes:
    """Bits of one code, bytes of one group's scale (0: no groups); whether a part has a step."""

    code_bits: int
    scale_bytes: int
    has_step: bool = False


CODEC_SIZES = {
    "f32": CodecSizes(32, 0),
    "f16": CodecSizes(16, 0),
    "bf16": CodecSizes(16, 0),
    "f8e4m3": CodecSizes(8, 4),
    "int8": CodecSizes(8, 2),
    "int4": CodecSizes(4, 2),
    "step8": CodecSizes(8, 0, has_step=True),
    "step16": CodecSizes(16, 0, has_step=True),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A run of one field's stored values with one codec.

    Parameters
    ----------
    codec : str
        A key of `CODEC_SIZES`.
    values : int
        Values per row.
    group_size : int or None
        Values that share a scale; ``None`` for codecs without scales.
    step : float or None
        What a code is multiplied by, a normal float32 number; ``None`` for codecs without a step.
    """

    codec: str
    values: int
    group_size: int | None = None
    step: float | None = None

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales; the last group may be shorter."""
        if self.group_size is None:
            return 0
        return -(-self.values // self.group_size) * CODEC_SIZES[self.codec].scale_bytes

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes; a trailing odd 4-bit code takes a whole byte."""
        return -(-self.values * CODEC_SIZES[self.codec].code_bits // 8)

    @property
    def row_bytes(self) -> int:
        """Bytes of the scales and the codes."""
        return self.scale_bytes + self.code_bytes


# How one field is stored: its values in order, cut into parts. The leading coefficients of a
# basis, which are the largest, may so have more bits than the rest.
FieldEncoding = tuple[Part, ...]


FRAMES = ("raw", "zstd", "zstd-runs")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the rows of a chunk are stored.

    Parameters
    ----------
    frame : str
        One of `FRAMES`. ``"raw"``: blocks of a fixed size. ``"zstd"``: one zstd frame per block.
        ``"zstd-runs"``: the same, runs of zeros cut short before.
    rows_per_block : int
        Rows that are read, checked and decoded together.
    fields : tuple of tuple of Part
        One per kept field of the table, in order.
    """

    frame: str
    rows_per_block: int
    fields: tuple[FieldEncoding, ...]


def longest_content(frame: str, size: int) -> int:
    """Bytes of the longest content that a frame of `size` bytes of records may have.

    With runs cut short: a count, a symbol for each byte that is not zero and for each sixteen that
    are, and each byte once more.
    """
    return 4 + 2 * size + size // 16 if frame == "zstd-runs" else size


def raw_block_bytes(record_bytes: int, rows_per_block: int) -> int:
    """Bytes of one raw block: records, zero padding, CRC-32 in the last four bytes."""
    return align(record_bytes * rows_per_block + CHECKSUM_BYTES, BLOCK_ALIGNMENT)


def field_bytes(encoding: FieldEncoding) -> int:
    """Bytes of one field in one record."""
    return sum(part.scale_bytes + part.code_bytes for part in encoding)
