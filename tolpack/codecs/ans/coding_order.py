"""The order in which the symbols of a row are coded, and the lane of each (SPEC §8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.alphabets import LARGEST_GROUP
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.trellis import run_length
from tolpack.runtime.array_types import Ints

# Symbols of which lists are made at a time.
_PIECE = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class TrellisOrder:
    """The order of a trellis: value by value, each lane having a stretch of each field.

    All arrays are int64 (V,), in the order of coding. ``values``: numbers of the values in field
    order. ``lanes``: their lanes. ``stretches``: number of the field × lanes + lane.
    """

    values: Ints
    lanes: Ints
    stretches: Ints

    @classmethod
    def of(cls, field_values: tuple[int, ...], lanes: int) -> TrellisOrder:
        """Order fields of so many stored values."""
        found = []
        for field, count in enumerate(field_values):
            length = run_length(count, lanes)
            step, lane = np.divmod(np.arange(lanes * length), lanes)
            value = lane * length + step
            first = sum(field_values[:field])
            all_of = np.stack([first + value, lane, field * lanes + lane])
            found.append(all_of[:, value < count])
        return cls(*np.concatenate(found, axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class ClassOrder:
    """The order without a trellis: by class, and in groups as far as a class has whole ones.

    ``models``, ``sizes``: int32 (S,), in the order of coding: class of a symbol, and how many
    levels it stands for. ``values``: int32 (S, 4), numbers of its values in field order, -1 behind
    them. The symbols of a row are of lanes 0, 1, … in turn.
    """

    models: NDArray[np.int32]
    sizes: NDArray[np.int32]
    values: NDArray[np.int32]

    @classmethod
    def of(cls, classes: NDArray[np.uint8], models: CodeModels) -> ClassOrder:
        """Order values of these classes, uint8 (V,)."""
        order, counts = np.argsort(classes, kind="stable"), np.bincount(classes)
        ends, found = np.cumsum(counts), []
        for model in np.flatnonzero(counts).tolist():
            values, size = order[ends[model] - counts[model] : ends[model]], models.sizes[model]
            whole = len(values) // size * size
            for own in (values[:whole].reshape(-1, size), values[whole:, None]):
                padded = np.full((len(own), LARGEST_GROUP), -1, np.int32)
                padded[:, : own.shape[1]] = own
                described = np.array([[model], [own.shape[1]]], np.int32)
                found.append((*np.repeat(described, len(own), axis=1), padded))
        return cls(*(np.concatenate(parts) for parts in zip(*found)))

    def symbols(self, backwards: bool = False) -> Iterator[tuple[int, int, list[int]]]:
        """Yield number, model and values of each symbol, or from the last one on."""
        for start in range(0, len(self.sizes), _PIECE):
            numbers = np.arange(start, min(start + _PIECE, len(self.sizes)))
            if backwards:
                numbers = len(self.sizes) - 1 - numbers
            parts = (self.models[numbers], self.sizes[numbers], self.values[numbers])
            for n, model, size, values in zip(numbers.tolist(), *(part.tolist() for part in parts)):
                yield n, model, values[:size]
