"""From token ids to the rows of a table: by the hash of its n-grams, or one by one.

What a header says of the hash was checked when the pack was opened. The compressed ids are read
when they are first needed, and stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tolpack.container.ngram_header import MAX_ID
from tolpack.container.verified_reader import Container
from tolpack.errors import FormatError
from tolpack.ngrams.hashing import NGramHash
from tolpack.reading.lookup import check_ids
from tolpack.runtime.array_types import Ints
from tolpack.runtime.fork_safety import ForkSafe


class NGramRows(ForkSafe):
    """The rows that a text touches in a container's table."""

    def __init__(self, container: Container) -> None:
        self._container, self._ngrams = container, container.table.ngrams
        self._hash: NGramHash | None = None
        super().__init__()

    @property
    def vocab_size(self) -> int:
        """Token ids that a text may hold."""
        if self._ngrams is None:
            return self._container.table.rows
        number = self._ngrams.id_map
        shape = None if number is None else self._container.header.sections[number].shape
        return MAX_ID + 1 if shape is None else shape[0]

    @property
    def hash(self) -> NGramHash | None:
        """The hash; ``None`` where a token id is the number of its row.

        Raises
        ------
        FormatError, FileAccessError
            The compressed ids cannot be read.
        """
        if self._hash is None and self._ngrams is not None:
            with self._lock:  # not by every thread at once
                if self._hash is None:
                    self._hash = self._ngrams.to_hash(self._compressed_ids(self._ngrams.id_map))
        return self._hash

    def rows(self, token_ids: ArrayLike, history: ArrayLike | None = None) -> Ints:
        """Rows of the tokens of a text, int64 (tokens, heads); errors as of `tolpack.Pack.row_ids`.

        `history` are the token ids before the first one.
        """
        ids, hashing = check_ids(token_ids, self.vocab_size), self.hash
        before = None if history is None else check_ids(history, self.vocab_size)
        return ids[:, None] if hashing is None else hashing.rows(ids, before)

    def _compressed_ids(self, number: int | None) -> NDArray[np.uint32] | None:
        return None if number is None else read_id_map(self._container, number)


def read_id_map(container: Container, number: int) -> NDArray[np.uint32]:
    """Read section `number`: the id that is hashed for each token id, uint32 (vocab,), a copy.

    Raises
    ------
    FormatError
        Code ``array-checksum`` or ``id-map`` (an id that is too large).
    """
    ids = container.array(number).astype(np.uint32, copy=False)
    highest = int(ids.max())
    if highest > MAX_ID:
        raise FormatError("id-map", f"sections[{number}]", highest, f"at most {MAX_ID}")
    return ids
