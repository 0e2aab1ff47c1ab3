"""`RecordCoder`: between records of integers and payloads of frame ``ans`` (SPEC §6, §8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.row_coder import RowCoder, compiled_loops
from tolpack.codecs.encodings import FieldEncoding, ordered_parts
from tolpack.codecs.registry import CODECS
from tolpack.runtime.array_types import Bytes, Ints

# The codecs whose records can be coded.
CODED_CODECS = ("step8", "step16")


@dataclass(frozen=True, slots=True, eq=False)
class PartColumns:
    """Where a part is: its first byte in a record, and its values in field order."""

    start_byte: int
    start: int
    count: int
    code_bytes: int

    def view(self, records: Bytes) -> NDArray[Any]:
        """Return the codes of the part in records, int8 or int16 (rows, count): a view."""
        own = records[:, self.start_byte : self.start_byte + self.count * self.code_bytes]
        return own.view(f"<i{self.code_bytes}")

    @property
    def columns(self) -> slice:
        """The part's values in field order."""
        return slice(self.start, self.start + self.count)


@dataclass(frozen=True, slots=True, eq=False)
class RecordCoder:
    """Codes the records of some fields."""

    rows: RowCoder
    parts: tuple[PartColumns, ...]
    record_bytes: int
    loop_parts: Ints = field(init=False)

    def __post_init__(self) -> None:
        """Describe the parts to the loops."""
        parts = [(part.start_byte, part.start, part.count, part.code_bytes) for part in self.parts]
        object.__setattr__(self, "loop_parts", np.array(parts, np.int64))

    @classmethod
    def of(
        cls,
        fields: tuple[FieldEncoding, ...],
        classes: NDArray[np.uint8],
        models: CodeModels,
        lanes: int,
        trellis: bool,
        place: str = "classes",
    ) -> RecordCoder:
        """Lay out records whose parts have the codecs ``step8`` and ``step16`` alone.

        Parameters
        ----------
        fields : tuple of tuple of Part
            One per kept field.
        classes, models, lanes, trellis, place
            As of `RowCoder`.

        Returns
        -------
        RecordCoder
            The coder.

        Raises
        ------
        FormatError
            As of `RowCoder`.
        """
        parts = part_columns(fields)
        bits = np.empty(sum(part.count for part in parts), np.int64)
        for part in parts:
            bits[part.columns] = 8 * part.code_bytes
        values = tuple(sum(part.values for part in field) for field in fields)
        rows = RowCoder(values, classes, models, lanes, trellis, bits, place)
        return cls(rows, parts, int(bits.sum()) // 8)

    def codes(self, records: Bytes) -> NDArray[np.int16]:
        """Return the codes of records: int16 (n, V), in field order."""
        found = np.empty((len(records), self.rows.values), np.int16)
        for part in self.parts:
            found[:, part.columns] = part.view(records)
        return found

    def records(self, codes: NDArray[Any]) -> Bytes:
        """Return the records of codes (n, V) that fit: uint8 (n, record_bytes)."""
        found = np.empty((len(codes), self.record_bytes), np.uint8)
        for part in self.parts:
            part.view(found)[:] = codes[:, part.columns]
        return found

    def encode_records(self, records: Bytes, rows_per_block: int) -> list[bytes]:
        """Encode records, uint8 (n, record_bytes); else as `RowCoder.encode`."""
        return self.rows.encode(self.codes(records), rows_per_block)

    def decode_records(
        self,
        payloads: Sequence[bytes | memoryview],
        rows: Sequence[int],
        place: Callable[[int], str] = "payload {}".format,
    ) -> Bytes:
        """Decode blocks to uint8 (sum of rows, record_bytes); else as `RowCoder.decode`."""
        counts = np.asarray(rows, np.int64)
        compiled = compiled_loops(int(counts.sum()) * self.rows.values)
        if compiled is None:
            return self.records(self.rows.decode(payloads, rows, place))
        return self.rows.tables.decode(
            compiled.ans_decode, payloads, counts, self.loop_parts, self.record_bytes, place
        )


def part_columns(fields: tuple[FieldEncoding, ...]) -> tuple[PartColumns, ...]:
    """Return the parts of `fields` in the order of a record."""
    firsts = np.cumsum([0] + [sum(part.values for part in field) for field in fields]).tolist()
    found, byte = [], 0
    for number, n in ordered_parts(fields):
        part = fields[number][n]
        start = firsts[number] + sum(before.values for before in fields[number][:n])
        found.append(PartColumns(byte, start, part.values, CODECS[part.codec].code_bits // 8))
        byte += part.code_bytes
    return tuple(found)
