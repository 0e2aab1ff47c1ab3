"""`NGramHash`: the rows that a token touches in a table of hashed n-grams.

A head hashes the last n token ids to one row. Families differ in how ids are mixed, in the sizes of
heads, and in what stands before the text; all of it is data here, so a pack can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class NGramHash:
    """The function from token ids to row numbers of one table.

    Head ``h`` of order ``n`` takes the ids of the token and the n - 1 before it, mixes them, and
    gives row ``offsets[h] + mixed mod sizes[h]``.

    Parameters
    ----------
    mixing : str
        ``"xor"``: XOR over k of ``id[t-k] · multipliers[k]``, in int64. ``"sum"``: their sum,
        exact.
    orders, sizes, offsets : tuple of int
        By head: n, number of rows, and first row in the table.
    multipliers : tuple of int
        By position k, from the token itself backwards.
    pad : int
        Id that stands before the text, after `compressed_ids` are applied.
    boundary : int or None
        Id that ends a text: n-grams do not reach over it, and `pad` stands in its place.
    compressed_ids : ndarray, optional
        uint32 (vocab,): the id that is hashed for each token id; ``None``: the token id itself.
    """

    mixing: str
    orders: tuple[int, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    multipliers: tuple[int, ...]
    pad: int
    boundary: int | None = None
    compressed_ids: NDArray[np.uint32] | None = None

    @property
    def heads(self) -> int:
        """Rows that each token touches."""
        return len(self.orders)

    @property
    def context(self) -> int:
        """How many tokens before the first one decide its rows."""
        return max(self.orders) - 1
