"""A table whose fields are held in memory, for several builds.

Rows of a whole field are computed together. They may differ in the last bit from rows that one
build computes a few at a time, because matrix products round by their shapes. So may a byte of a
pack.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.runtime.fork_safety import ForkSafe
from tolpack.sources.protocol import FieldRows, TableSource
from tolpack.sources.uniform_table import DerivedTable

# Rows computed together.
_BLOCK_TOKENS = 2048


class HeldTable(DerivedTable, ForkSafe):
    """Another `TableSource`, each field in memory as float32 from its first use on.

    Parameters
    ----------
    source : TableSource
        The table.
    """

    def __init__(self, source: TableSource) -> None:
        super().__init__(source)
        self._fields: dict[int, NDArray[np.float32]] = {}
        ForkSafe.__init__(self)

    @staticmethod
    def nbytes(source: TableSource) -> int:
        """Bytes that holding `source` takes."""
        return 4 * source.rows * sum(field.width for field in source.fields)

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource`."""
        with self._lock:
            if field not in self._fields:
                self._fields[field] = self._computed(field)
        held = self._fields[field]
        return lambda ids: held[ids]

    def computed_in(self, compute: torch.dtype) -> HeldTable:
        """See `TableSource.computed_in`; shares nothing that was computed with this table."""
        source = self._source.computed_in(compute)
        return self if source is self._source else HeldTable(source)

    def _computed(self, field: int) -> NDArray[np.float32]:
        rows = self._source.field_rows(field)
        held = np.empty((self.rows, self.fields[field].width), np.float32)
        for start in range(0, self.rows, _BLOCK_TOKENS):
            part = held[start : start + _BLOCK_TOKENS]
            part[:] = rows(np.arange(start, start + len(part), dtype=np.int64))
        return held
