"""`BasisCoder`: rows of a basis as 8-bit codes with a scale each, coded by models (SPEC §5, §8).

A row is to the coder what a field is in a row of a table: all its values have one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Bytes

# Bytes of the scale of a row, and bits of a code.
_SCALE_BYTES, _CODE_BITS = 2, 8


@dataclass(frozen=True, slots=True, eq=False)
class BasisCoder:
    """Codes a basis (rank, width) whose rows are records of codec ``int8`` with one scale each."""

    rows: RowCoder
    rank: int
    width: int

    @classmethod
    def of(
        cls, shape: tuple[int, int], classes: NDArray[np.uint8], models: CodeModels, lanes: int,
        place: str = "classes",
    ) -> BasisCoder:  # fmt: skip
        """Lay out a basis.

        Parameters
        ----------
        shape : tuple of int
            Rank and width.
        classes : ndarray
            uint8 (rank or more,): number of the model of each row.
        models, lanes, place
            As of `RowCoder`.

        Returns
        -------
        BasisCoder
            The coder.

        Raises
        ------
        FormatError
            As of `RowCoder`.
        """
        rank, width = shape
        whole = np.repeat(classes[:rank], width)
        rows = RowCoder((width,) * rank, whole, models, lanes, False, _CODE_BITS, place)
        return cls(rows, rank, width)

    def encode(self, records: Bytes) -> bytes:
        """Return the stored bytes of records, uint8 (rank, 2 + width): scale and codes of a row."""
        codes = np.ascontiguousarray(records[:, _SCALE_BYTES:]).view(np.int8)
        payload = self.rows.encode(codes.reshape(1, -1), 1)[0]
        return records[:, :_SCALE_BYTES].tobytes() + payload

    def decode(self, stored: Bytes, place: str) -> Bytes:
        """Return the records, uint8 (rank, 2 + width), of stored bytes, uint8 (n,).

        Raises
        ------
        FormatError
            Code ``frame``: it is no payload of so many codes; `place` names it.
        """
        if len(stored) < self.rank * _SCALE_BYTES:
            raise FormatError("frame", place, f"{len(stored)} bytes", "the scales of all rows")
        scales, payload = np.split(stored, [self.rank * _SCALE_BYTES])
        records = np.empty((self.rank, _SCALE_BYTES + self.width), np.uint8)
        records[:, :_SCALE_BYTES] = scales.reshape(self.rank, _SCALE_BYTES)
        codes = self.rows.decode([payload.tobytes()], [1], lambda _: place)
        records[:, _SCALE_BYTES:] = codes.astype(np.int8).reshape(self.rank, -1).view(np.uint8)
        return records
