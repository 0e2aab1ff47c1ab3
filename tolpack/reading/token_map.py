"""The token map: from token ids to slots, and back.

It is checked before any of it is used. It stays in memory with two or four bytes a token, and is
checked and inverted piece by piece, which takes another byte for each token. A table
without a map is in the order of its ids, and takes nothing, however many rows it claims to have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.container.token_chunks import slots_of_chunks
from tolpack.container.verified_reader import Container
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Ints
from tolpack.runtime.fork_safety import ForkSafe

Slots = NDArray[np.integer[Any]]
# Tokens that are looked at together.
_PIECE = 1 << 18


class StoredOrder:
    """Token ids in the order in which a pack stores them.

    Parameters
    ----------
    tokens : ndarray or None
        By slot, unsigned (rows,); ``None``: the order of the ids.
    """

    def __init__(self, tokens: Slots | None) -> None:
        self._tokens = tokens

    def tokens(self, start: int, stop: int) -> Ints:
        """Token ids of slots ``start … stop-1`` of the table, int64 (stop-start,), a copy."""
        if self._tokens is None:
            return np.arange(start, stop)
        return self._tokens[start:stop].astype(np.int64)

    def sorted_tokens(self, start: int, stop: int) -> Slots:
        """As `tokens`, ascending and in the dtype that is stored."""
        if self._tokens is None:
            return np.arange(start, stop)
        return np.sort(self._tokens[start:stop])


class TokenMap(ForkSafe):
    """The slots of a container's tokens, read when they are first needed."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._slots: Slots | None = None
        super().__init__()

    def slots(self, ids: Ints) -> Ints:
        """Slots of token `ids`, int64 (ids,).

        Raises
        ------
        FormatError
            Code ``array-checksum`` or ``token-map`` (no permutation).
        """
        stored = self._read()
        return ids if stored is None else stored[ids].astype(np.int64)

    def first(self, count: int) -> Ints:
        """Token ids of the first `count` slots, int64 (count,); errors as of `slots`."""
        stored = self._read()
        return np.arange(count) if stored is None else _turned(stored, np.empty(count, np.int64))

    def order(self) -> StoredOrder:
        """The order of all slots; errors as of `slots`."""
        stored = self._read()
        return StoredOrder(None if stored is None else inverse_permutation(stored))

    def _read(self) -> Slots | None:
        number = self._container.table.token_map
        if self._slots is not None or number is None:
            return self._slots
        with self._lock:  # not by every thread at once
            if self._slots is None:
                self._slots = read_token_map(self._container, number)
            return self._slots


def read_token_map(container: Container, number: int) -> Slots:
    """Read section `number`: the slot of each token id, unsigned (rows,), a copy.

    Raises
    ------
    FormatError
        Code ``array-checksum`` or ``token-map`` (no permutation).
    """
    stored: NDArray[Any] = container.array(number)
    if stored.dtype == np.uint8:
        rows = [chunk.rows for chunk in container.table.chunks]
        found = slots_of_chunks(stored, rows)
        if found is None:
            raise FormatError("token-map", "token map", "other numbers", f"{rows} tokens by chunk")
        return found
    slots: Slots = stored
    seen = np.zeros(len(slots), bool)
    for _, piece in _pieces(slots):
        if int(piece.max()) >= len(slots):
            break
        seen[piece] = True
    if not seen.all():
        raise FormatError("token-map", "token map", "no permutation", "each slot exactly once")
    return slots


def inverse_permutation(slots: Slots) -> Slots:
    """Token ids by slot, in the dtype of `slots`, a permutation (rows,)."""
    return _turned(slots, np.empty_like(slots))


def _turned(slots: Slots, out: NDArray[Any]) -> NDArray[Any]:
    """Put the tokens of the first ``len(out)`` slots there."""
    for start, piece in _pieces(slots):
        some = np.flatnonzero(piece < len(out))
        out[piece[some]] = some + start
    return out


def _pieces(slots: Slots) -> Iterator[tuple[int, Slots]]:
    for start in range(0, len(slots), _PIECE):
        yield start, slots[start : start + _PIECE]
