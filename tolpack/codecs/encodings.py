"""`Encoding`: the codecs of each field and the frame, by which a chunk is stored (SPEC §5, §6).

A header names these by codec and frame; how many bytes they take follows from the codecs alone, so
that extents can be checked before anything is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

from tolpack.codecs.byte_planes import WORD_BYTES, RecordWords, Words
from tolpack.codecs.frames import FRAMES
from tolpack.codecs.registry import CODECS


@dataclass(frozen=True, slots=True)
class Part:
    """A run of one field's stored values with one codec.

    Parameters
    ----------
    codec : str
        A key of `tolpack.codecs.registry.CODECS`.
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
        return -(-self.values // self.group_size) * CODECS[self.codec].scale_bytes

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes; a trailing odd 4-bit code takes a whole byte."""
        return -(-self.values * CODECS[self.codec].code_bits // 8)

    @property
    def row_bytes(self) -> int:
        """Bytes of the scales and the codes."""
        return self.scale_bytes + self.code_bytes

    @property
    def word_bytes(self) -> tuple[int, int]:
        """Bytes of a scale and of a code; 1 for codes that fill no 2 or 4 bytes."""
        codec = CODECS[self.codec]
        return codec.scale_bytes, max(1, codec.code_bits // 8)


# How one field is stored: its values in order, cut into parts. The leading coefficients of a
# basis, which are the largest, may so have more bits than the rest.
FieldEncoding = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class CoderSettings:
    """By what codes are entropy-coded, in an encoding of frame ``ans`` or in a basis.

    Parameters
    ----------
    models, classes : int
        Numbers of the sections with the models, and with the classes of values.
    class_row : int
        The row of the classes.
    lanes : int
        Lanes of a payload, 1 to 32.
    trellis : bool
        Whether codes are trellis-coded, with 8 states.
    """

    models: int
    classes: int
    class_row: int
    lanes: int
    trellis: bool = False


@dataclass(frozen=True, slots=True)
class Encoding:
    """The way in which the rows of a chunk are stored.

    Parameters
    ----------
    frame : str
        A key of `tolpack.codecs.frames.FRAMES`: how a block's records are compressed.
    rows_per_block : int
        Rows that are read, checked and decoded together.
    fields : tuple of tuple of Part
        One per kept field of the table, in order.
    coder : CoderSettings or None
        With the frame ``ans``, and with no other.
    """

    frame: str
    rows_per_block: int
    fields: tuple[FieldEncoding, ...]
    coder: CoderSettings | None = None

    @property
    def is_compressed(self) -> bool:
        """Whether blocks are payloads of different lengths, found through an index."""
        return FRAMES[self.frame].feature_bit is not None

    @property
    def values(self) -> int:
        """Stored values of a row, all kept fields together."""
        return sum(part.values for parts in self.fields for part in parts)

    def record(self) -> RecordWords:
        """Bytes of a record, and its words if the frame cuts them into planes: a new object."""
        if self.frame == "zstd-planes":
            return record_words(self.fields)
        return RecordWords(sum(map(field_bytes, self.fields)), ())


def ordered_parts(fields: tuple[FieldEncoding, ...]) -> list[tuple[int, int]]:
    """Return (number of the field, number of the part) in the order of a record (SPEC §6)."""
    depth = max(len(parts) for parts in fields)
    return [
        (field, n) for n in range(depth) for field, parts in enumerate(fields) if n < len(parts)
    ]


def record_words(fields: tuple[FieldEncoding, ...]) -> RecordWords:
    """Return the bytes of a record, and the words of 4, 2 and 1 bytes in its scales and codes."""
    parts = [fields[field][n] for field, n in ordered_parts(fields)]
    stretches = [(0, part.word_bytes[0], part.scale_bytes) for part in parts if part.scale_bytes]
    stretches += [(1, part.word_bytes[1], part.code_bytes) for part in parts]
    spans: dict[tuple[int, int], list[slice]] = {
        (area, size): [] for area in (0, 1) for size in WORD_BYTES
    }
    end = 0
    for area, size, length in stretches:
        own, start = spans[area, size], end
        if own and own[-1].stop == start:
            start = own.pop().start
        end += length
        own.append(slice(start, end))
    words = tuple(Words(size, tuple(own)) for (_, size), own in spans.items() if own)
    return RecordWords(end, words)


def field_bytes(encoding: FieldEncoding) -> int:
    """Bytes of one field in one record."""
    return sum(part.row_bytes for part in encoding)
