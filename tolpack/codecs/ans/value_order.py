"""The order in which the values of a row are coded, and the lane of each (SPEC §8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ValueOrder:
    """All arrays are int64 (V,), in the order of coding.

    ``values``: numbers of the values in field order. ``lanes``: their lanes. ``steps``: numbers
    within their stretch of a lane. ``stretches``: number of the field × lanes + lane.
    """

    values: NDArray[np.int64]
    lanes: NDArray[np.int64]
    steps: NDArray[np.int64]
    stretches: NDArray[np.int64]

    @classmethod
    def of(cls, field_values: tuple[int, ...], lanes: int) -> ValueOrder:
        """Order fields of so many stored values: a lane has a stretch of each of them."""
        found = []
        for field, count in enumerate(field_values):
            step, lane = np.divmod(np.arange(lanes * -(-count // lanes)), lanes)
            value = lane * -(-count // lanes) + step
            first = sum(field_values[:field])
            all_of = np.stack([first + value, lane, step, field * lanes + lane])
            found.append(all_of[:, value < count])
        return cls(*np.concatenate(found, axis=1))
