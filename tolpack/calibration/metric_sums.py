"""Sums over a text from which loss metrics follow, some windows at a time.

Windows are taken in groups, whose sums are added in their order. So what comes out does not depend
on who sums a group: this process, or others that store the sums of theirs in files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration.count_slope import CountSlope
from tolpack.model.language_model import LanguageModel
from tolpack.runtime.scratch import Scratch

# Raised whenever the same inputs would be measured otherwise: kept metrics, and sums that an
# interrupted build has left, are then stale.
REVISION = 3
# Groups of a text, at most: each has the sums of all layers, gigabytes for a large model.
_GROUPS = 8


class MetricSums:
    """``Σ g_l g_{l+k}ᵀ`` over positions, for each layer and `reach` layers above it, and squared
    gradients of rows.

    Parameters
    ----------
    layers, hidden : int
        The model's.
    reach : int
        How many layers above each one.
    scratch : Scratch
        Keeps the sums.
    """

    def __init__(self, layers: int, hidden: int, reach: int, scratch: Scratch) -> None:
        self.slope, self._reach = CountSlope(), reach
        self.products = [
            [scratch.spill(np.zeros((hidden, hidden))) for _ in range(min(reach + 1, layers - n))]
            for n in range(layers)
        ]

    def add_batch(self, model: LanguageModel, batch: torch.Tensor) -> None:
        """Add the gradients at the positions of some windows, int64 (windows, context + 1)."""
        above: deque[torch.Tensor] = deque(maxlen=self._reach + 1)  # of the layers above
        row_ids = model.row_ids(batch[:, :-1]).flatten().numpy()
        squares = np.zeros(len(row_ids))
        for layer, gradient, _ in model.row_gradients(batch):
            # In float64, so that no number of threads shows in what is kept as float32.
            flat = gradient.reshape(-1, gradient.shape[-1]).double()
            squares += flat.square().sum(1).numpy()
            above.appendleft(flat)
            for kept, other in zip(self.products[layer], above):
                kept.replace(kept.load() + (flat.T @ other).numpy())
        self.slope.add(row_ids, squares)

    def add(self, other: MetricSums) -> None:
        """Add the sums of other windows."""
        for row, more in zip(self.products, other.products):
            for kept, one in zip(row, more):
                kept.replace(kept.load() + one.load())
        self.slope.extend(other.slope)

    def save(self, file: IO[bytes]) -> None:
        """Write the sums to a file, array by array."""
        for array in self.slope.arrays():
            np.save(file, array)
        for kept in (kept for row in self.products for kept in row):
            np.save(file, kept.load())

    def load(self, file: IO[bytes]) -> None:
        """Take the sums that `save` has written, in place of these.

        Raises
        ------
        ValueError, OSError
            The file is cut off, or holds other arrays.
        """
        self.slope = CountSlope()
        self.slope.put(np.load(file), np.load(file))
        for kept in (kept for row in self.products for kept in row):
            array: NDArray[np.float64] = np.load(file)
            if (array.shape, array.dtype) != (kept.shape, kept.dtype):
                raise ValueError(f"sums of {array.shape} {array.dtype}")
            kept.replace(array)


def groups(batches: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
    """Cut the batches of a text into groups, by their number alone."""
    count = min(_GROUPS, len(batches))
    cuts = [len(batches) * n // count for n in range(count + 1)]
    return [batches[start:stop] for start, stop in zip(cuts, cuts[1:])]


def sum_group(
    sums: MetricSums,
    model: LanguageModel,
    group: Sequence[torch.Tensor],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Add the batches of a group to `sums`; `progress` is called with the tokens differentiated."""
    for batch in group:
        sums.add_batch(model, batch)
        if progress is not None:
            progress(batch[:, 1:].numel())
