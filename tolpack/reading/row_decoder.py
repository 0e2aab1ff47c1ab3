"""From records to rows in the caller's array: codes to values, bases, means, the multiplier.

Without a basis rows are decoded straight to their places. Bases and means are read from the file
when they are first needed, and stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.bfloat16 import rounded_to_bfloat16
from tolpack.codecs.record import RecordLayout, record_layout
from tolpack.container.verified_reader import Container
from tolpack.reading.basis_arrays import read_floats
from tolpack.reading.lookup import LayerSelection
from tolpack.runtime.array_types import Bytes, Floats, Ints
from tolpack.runtime.fork_safety import ForkSafe


class TableDecoder(ForkSafe):
    """Decodes the stored values of a container's table.

    ``layouts``: by encoding; ``plain``: whether rows are the stored values as they are;
    ``columns`` int64 (kept fields,): where each one's values begin among all stored ones.
    """

    def __init__(self, container: Container) -> None:
        self._container, self._table = container, container.table
        self._kept = container.table.kept_fields
        self.layouts: dict[int, RecordLayout] = {
            number: record_layout(container.header.encodings[number].fields)
            for number in self._table.encodings
        }
        self.plain = self._table.multiplier == 1.0 and all(
            field.basis is None and field.mean is None for field in self._kept
        )
        self._arrays: dict[int, Floats] = {}
        stored = [field.stored_values for field in self._kept]
        self._starts = np.cumsum([0, *stored]).tolist()
        self.columns = np.array(self._starts[:-1], np.int64)
        super().__init__()

    @property
    def has_basis(self) -> bool:
        """Whether some field is stored as coefficients."""
        return any(field.basis is not None for field in self._kept)

    @property
    def has_mean(self) -> bool:
        """Whether a mean is added to some field."""
        return any(field.mean is not None for field in self._kept)

    @property
    def multiplier(self) -> float:
        """The factor of all rows."""
        return self._table.multiplier

    @property
    def stored_values(self) -> int:
        """Stored values of a row, all kept fields together."""
        return int(self._starts[-1])

    def span(self, kept: int) -> slice:
        """The columns of kept field `kept` among them."""
        return slice(self._starts[kept], self._starts[kept + 1])

    def basis(self, kept: int) -> Floats | None:
        """Basis of a kept field, float32 (rank, width)."""
        number = self._kept[kept].basis
        return None if number is None else self.array(number)

    def mean(self, kept: int) -> Floats | None:
        """Mean of a kept field, float32 (width,)."""
        number = self._kept[kept].mean
        return None if number is None else self.array(number)

    def rows(self, kept: int, stored: Floats) -> Floats:
        """Return rows of kept field `kept`, float32 (n, width), from its stored values."""
        values = self.unscaled_rows(kept, stored)
        if self._table.multiplier != 1.0:
            values = values * np.float32(self._table.multiplier)
        return values

    def unscaled_rows(self, kept: int, stored: Floats) -> Floats:
        """Return the same before they are multiplied by `multiplier`."""
        basis, mean = self.basis(kept), self.mean(kept)
        values = stored if basis is None else stored @ basis
        return values if mean is None else values + mean

    def array(self, number: int) -> Floats:
        """Return array section `number`, a basis or a mean, float32."""
        if number not in self._arrays:
            with self._lock:  # not by every thread at once
                if number not in self._arrays:
                    self._arrays[number] = read_floats(self._container, number)
        return self._arrays[number]


@dataclass(frozen=True, slots=True)
class RowDecoder:
    """Decodes records to rows of an array; a `tolpack.reading.record_reader.RecordSink`.

    ``out`` (any, layers, width) of float32, float16, or uint16 for the bits of bfloat16.
    """

    decoder: TableDecoder
    out: NDArray[Any]
    layers: LayerSelection

    def __call__(self, encoding: int, records: Bytes, places: Ints) -> None:
        """Decode `records` to ``out[places]``."""
        layout, out = self.decoder.layouts[encoding], self.out
        if self.decoder.plain and out.dtype != np.float16 and out.flags.c_contiguous:
            layout.decode_into(records, self.layers.columns, out.reshape(len(out), -1), places)
        else:
            positions = self.layers.positions
            wanted = np.flatnonzero(positions >= 0).tolist()
            for kept, stored in layout.decode(records, wanted).items():
                self._put(places, int(positions[kept]), self.decoder.rows(kept, stored))

    def _put(self, places: Ints, position: int, rows: Floats) -> None:
        as_bfloat16 = self.out.dtype == np.uint16
        self.out[places, position] = rounded_to_bfloat16(rows) if as_bfloat16 else rows


@dataclass(frozen=True, slots=True)
class StoredValueDecoder:
    """Decodes records to their stored values; a `tolpack.reading.record_reader.RecordSink`.

    ``out`` (any, stored values of all kept fields), contiguous, of float32, or uint16 for the bits
    of bfloat16.
    """

    decoder: TableDecoder
    out: NDArray[Any]

    def __call__(self, encoding: int, records: Bytes, places: Ints) -> None:
        """Decode `records` to ``out[places]``."""
        layout = self.decoder.layouts[encoding]
        layout.decode_into(records, self.decoder.columns, self.out, places)
