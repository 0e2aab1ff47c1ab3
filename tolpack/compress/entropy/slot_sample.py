"""Steps of tokens, and a sample of rows from which ``--bits auto`` predicts sizes and ranks.

A token's step falls with its count, raised by an eighth of the mean count (`raised_counts`), to the
power ``-exponent / 2``, evened out over its chunk. The sample is spread over every chunk; a small
table is sampled whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.token_order import TokenOrder
from tolpack.compress.chunks import STEP_EXPONENT, ChunkSpan, raised_counts
from tolpack.compress.entropy.quantizers import short_step
from tolpack.runtime.array_types import Doubles, Floats

# Rows of the sample, all layers in float32.
_SAMPLE_BYTES = 128 << 20
# Rows of a chunk that are sampled at least.
_LEAST_ROWS = 64


class FrequencySteps:
    """Every chunk's step relative to that of a token of mean count."""

    def __init__(
        self, order: TokenOrder, chunks: Sequence[ChunkSpan], exponent: float = STEP_EXPONENT
    ) -> None:
        self._starts = [plan.first_slot for plan in chunks]
        factors = np.ones(len(chunks))
        if order.counts is not None:
            counts = raised_counts(order.counts)
            own = [counts[p.first_slot : p.first_slot + p.rows].mean() for p in chunks]
            factors = (np.array(own) / counts.mean()) ** (-exponent / 2)
        self._factors = factors
        self._order = order

    def of_chunk(self, number: int, step: float) -> float:
        """Return the step of chunk `number`, of few digits, where `step` is the mean token's."""
        return short_step(step * self._factors[number])

    def of_slots(self, slots: NDArray[np.int64], step: float) -> Floats:
        """Step of each slot's token, float32 (n,)."""
        steps = [self.of_chunk(number, step) for number in range(len(self._starts))]
        numbers = np.searchsorted(self._starts, slots, side="right") - 1
        return np.asarray(steps, np.float32)[numbers]

    @property
    def mean_square(self) -> float:
        """Mean of the squared relative steps over the tokens of a text."""
        if self._order.counts is None:
            return self.of_chunk(0, 1.0) ** 2
        counts = self._order.counts + 0.5
        squares = self.of_slots(np.arange(len(counts)), 1.0).astype(np.float64) ** 2
        return float((counts * squares).sum() / counts.sum())


@dataclass(frozen=True, slots=True)
class SlotSample:
    """Rows of every chunk.

    ``slots``: by chunk, int64 (n,); ``text`` and ``rows``, float64 (all n,): the share of the text,
    and the number of rows, that each sampled row stands for.
    """

    slots: tuple[NDArray[np.int64], ...]
    text: Doubles
    rows: Doubles

    @property
    def all_slots(self) -> NDArray[np.int64]:
        """All sampled slots, int64 (n,)."""
        return np.concatenate(self.slots)


def sample_slots(order: TokenOrder, chunks: Sequence[ChunkSpan], row_values: int) -> SlotSample:
    """Sample rows of `row_values` values, evenly spread."""
    share = min(1.0, _SAMPLE_BYTES / (4 * row_values * order.rows))
    total = order.rows if order.counts is None else (order.counts + 0.5).sum()
    found, text, stands_for = [], [], []
    for plan in chunks:
        wanted = min(plan.rows, max(_LEAST_ROWS, math.ceil(plan.rows * share)))
        slots = plan.first_slot + np.arange(wanted) * plan.rows // wanted
        found.append(slots)
        each = plan.rows / wanted
        counts = np.ones(wanted) if order.counts is None else order.counts[slots] + 0.5
        text.append(counts * each / total)
        stands_for.append(np.full(wanted, each))
    return SlotSample(tuple(found), np.concatenate(text), np.concatenate(stands_for))
