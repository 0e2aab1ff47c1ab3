"""How ``--bits 16|8|4`` stores fields and chunks, and the bytes that follow from it."""

from __future__ import annotations

from tolpack.codecs.encodings import Encoding, FieldEncoding, Part, field_bytes
from tolpack.container.block_sizes import raw_block_bytes
from tolpack.container.preamble import align
from tolpack.sources.protocol import SourceField

GROUP_SIZE = 64
# How many leading coefficients of a basis may have 8 bits beside 4-bit ones: they are many times
# larger than the rest of their group and drown it (docs/lab-notes.md). `auto` chooses.
LEADING_CHOICES = (0, 8, 16, 32, 64)
_RAW_PADDING_SHARE = 0.02
_FRAME_BYTES = 8192


def field_encoding(values: int, bits: int, codec16: str, leading: int = 0) -> FieldEncoding:
    """Choose the parts of one field.

    Parameters
    ----------
    values : int
        Stored values per row: the width, or the rank with a basis.
    bits : int
        16, 8 or 4.
    codec16 : str
        ``"f16"`` or ``"bf16"``: what 16 bits mean for these values.
    leading : int
        At 4 bits: how many of the first values have 8 bits, in a group of their own.
    """
    if bits == 16:
        return (Part(codec16, values),)
    leading = min(leading, values) if bits == 4 else 0
    parts = []
    if leading:
        parts.append(Part("int8", leading, group_size(leading)))
    if values > leading:
        parts.append(Part(f"int{bits}", values - leading, group_size(values - leading)))
    return tuple(parts)


def codec_of(field: SourceField) -> str:
    """Return what 16 bits mean for the values of a field."""
    return "bf16" if field.dtype == "bfloat16" else "f16"


def group_size(values: int) -> int:
    """Cut `values` into equal groups as close to 64 as they come; even, as SPEC §7 asks."""
    groups = max(1, round(values / GROUP_SIZE))
    return max(2, align(-(-values // groups), 2))


def smooth_field_bytes(values: int, bits: int, leading: int = 0) -> float:
    """Bytes of a field of coefficients with scales spread evenly: a smooth function of the rank."""
    if bits == 16:
        return 2.0 * values
    scales = 2 * (values - leading) / GROUP_SIZE + (2 if leading else 0)
    return values * bits / 8 + (leading * (8 - bits) / 8 if bits == 4 else 0) + scales


def raw_encoding(fields: tuple[FieldEncoding, ...]) -> Encoding:
    """Choose the block size of raw records: the fewest rows that waste at most 2 %, as a lookup
    reads whole blocks.
    """
    record = sum(field_bytes(field) for field in fields)
    rows = 1
    while rows < 64 and raw_block_bytes(record, rows) > (1 + _RAW_PADDING_SHARE) * record * rows:
        rows += 1
    return Encoding("raw", rows, fields)


def frame_encoding(frame: str, fields: tuple[FieldEncoding, ...]) -> Encoding:
    """Choose the block size of frames: the fewest rows that make 8 KiB, for the coder."""
    record = sum(field_bytes(field) for field in fields)
    rows = 1
    while rows < 64 and record * rows < _FRAME_BYTES:
        rows *= 2
    return Encoding(frame, rows, fields)


def raw_chunk_bytes(encoding: Encoding, rows: int) -> int:
    """Bytes of a raw chunk's section."""
    record = sum(field_bytes(field) for field in encoding.fields)
    block = raw_block_bytes(record, encoding.rows_per_block)
    return -(-rows // encoding.rows_per_block) * block
