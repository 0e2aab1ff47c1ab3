"""`BasisCoder`: rows of a basis as 8-bit codes with a scale each, coded by models (SPEC §5, §8).

To the coder a basis is one row of a table, in which all values of a row have one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Bytes

# Bytes of the scale of a row.
_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True, eq=False)
class BasisCoder:
    """Codes a basis whose rows are records of codec ``int8`` with one scale each."""

    shape: tuple[int, int]
    classes: NDArray[np.uint8]
    models: CodeModels
    lanes: int

    @classmethod
    def of(
        cls, shape: tuple[int, int], classes: NDArray[np.uint8], models: CodeModels, lanes: int,
        place: str = "classes",
    ) -> BasisCoder:  # fmt: skip
        """Check the classes of a basis, so that nothing has to be while decoding.

        Parameters
        ----------
        shape : tuple of int
            Rank and width.
        classes : ndarray
            uint8 (rank or more,): number of the model of each row.
        models : CodeModels
            The models.
        lanes : int
            1 to 32.
        place : str, optional
            What to name in errors about the classes.

        Returns
        -------
        BasisCoder
            The coder.

        Raises
        ------
        FormatError
            Code ``code-classes``: there is no such model.
        """
        own, most = classes[: shape[0]], len(models.array)
        largest = int(own.max(initial=0))
        if largest >= most:
            raise FormatError("code-classes", place, f"class {largest}", f"below {most}")
        return cls(shape, own, models, lanes)

    def encode(self, records: Bytes) -> bytes:
        """Return the stored bytes of records, uint8 (rank, 2 + width): scale and codes of a row.

        Raises
        ------
        ConfigError
            A code is in no symbol of its model.
        """
        codes = np.ascontiguousarray(records[:, _SCALE_BYTES:]).view(np.int8).reshape(1, -1)
        return records[:, :_SCALE_BYTES].tobytes() + self._whole().encode(codes, 1)[0]

    def decode(self, stored: Bytes, place: str) -> Bytes:
        """Return the records, uint8 (rank, 2 + width), of stored bytes, uint8 (n,).

        Raises
        ------
        FormatError
            Code ``frame``: it is not a payload of so many codes; `place` names it.
        """
        rank, width = self.shape
        scales, payload = np.split(stored, [rank * _SCALE_BYTES])
        if len(scales) < rank * _SCALE_BYTES:
            raise FormatError("frame", place, f"{len(stored)} bytes", "the scales of all rows")
        records = np.empty((rank, _SCALE_BYTES + width), np.uint8)
        records[:, :_SCALE_BYTES] = scales.reshape(rank, _SCALE_BYTES)
        codes = self._whole().decode([payload.tobytes()], [1], lambda _: place)
        records[:, _SCALE_BYTES:] = codes.astype(np.int8).reshape(rank, width).view(np.uint8)
        return records

    def _whole(self) -> RowCoder:
        """Return the coder of the basis as one row, whose fields are its rows."""
        return RowCoder.for_basis(*self.shape, self.classes, self.models, self.lanes)
