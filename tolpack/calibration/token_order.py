"""The order in which tokens are stored: frequent ones first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """Tokens in the order in which they are stored.

    ``token_ids`` int64 (vocab,): the token of each slot; ``identity`` says that it is 0, 1, 2, ….
    ``counts`` int64 (vocab,) by slot, or ``None`` when frequencies are not known.
    """

    token_ids: NDArray[np.int64]
    identity: bool
    counts: NDArray[np.int64] | None

    @property
    def slots(self) -> NDArray[np.int64]:
        """The token map: the slot of each token id, int64 (vocab,)."""
        slots = np.empty_like(self.token_ids)
        slots[self.token_ids] = np.arange(len(slots))
        return slots


def order_tokens(counts: NDArray[np.int64] | None, vocab_size: int) -> TokenOrder:
    """Order tokens by descending count, ties by id; by id without counts."""
    identity = np.arange(vocab_size, dtype=np.int64)
    if counts is None:
        return TokenOrder(identity, True, None)
    token_ids = np.argsort(-counts, kind="stable").astype(np.int64)
    return TokenOrder(token_ids, bool((token_ids == identity).all()), counts[token_ids])
