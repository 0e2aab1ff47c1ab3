"""The order in which tokens are stored: frequent ones first.

Tables of hashed n-grams have 10⁸ rows and more, mostly without counts, so the order of the ids
themselves takes no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Ints


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """Tokens in the order in which they are stored.

    ``rows``: how many; ``token_ids`` int64 (rows,): the token of each slot, or ``None`` for 0, 1,
    2, …; ``counts`` int64 (rows,) by slot, or ``None`` when frequencies are not known.
    """

    rows: int
    token_ids: NDArray[np.int64] | None
    counts: NDArray[np.int64] | None

    @property
    def identity(self) -> bool:
        """Whether tokens are in the order of their ids."""
        return self.token_ids is None

    def tokens(self, start: int, stop: int) -> Ints:
        """Token ids of slots ``start … stop-1``, int64 (stop-start,)."""
        return np.arange(start, stop) if self.token_ids is None else self.token_ids[start:stop]

    def tokens_at(self, slots: Ints) -> Ints:
        """Token ids of `slots`, int64 (n,)."""
        return slots if self.token_ids is None else self.token_ids[slots]

    def slots_of(self, token_ids: Ints) -> Ints:
        """Slots of `token_ids`, int64 (n,)."""
        return token_ids if self.token_ids is None else self.token_map()[token_ids]

    def sorted_within(self, rows: Sequence[int]) -> TokenOrder:
        """Return the order of runs of so many tokens, each sorted by id, without counts."""
        runs = np.split(self.tokens(0, self.rows), np.cumsum(rows)[:-1])
        token_ids = np.concatenate([np.sort(run) for run in runs])
        identity = bool((np.diff(token_ids) > 0).all())
        return TokenOrder(self.rows, None if identity else token_ids, None)

    def token_map(self) -> Ints:
        """The slot of each token id, int64 (rows,), a new array."""
        slots = np.empty(self.rows, np.int64)
        slots[self.tokens(0, self.rows)] = np.arange(self.rows)
        return slots


def order_tokens(counts: NDArray[np.int64] | None, rows: int) -> TokenOrder:
    """Order tokens by descending count, ties by id; by id without counts."""
    if counts is None:
        return TokenOrder(rows, None, None)
    token_ids = np.argsort(-counts, kind="stable").astype(np.int64)
    counts = counts[token_ids]
    if (token_ids[1:] > token_ids[:-1]).all():
        return TokenOrder(rows, None, counts)
    return TokenOrder(rows, token_ids, counts)
