"""`NGramHash`: the rows that a token touches in a table of hashed n-grams.

A head hashes the last n token ids to one row. Families differ in how ids are mixed, in the sizes of
heads, and in what stands before the text; all of it is data here, so a pack can hold it.
`tolpack.ngrams.families` fills it in as each family does.

The arithmetic is numpy's, on blocks that stay in the cache: int64 products that wrap around, and a
remainder that is never negative. A compiled loop is not needed: one core hashes more n-grams in a
second than any storage reads rows (``benchmarks/ngram_hash.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tolpack.errors import ConfigError, TokenIdError
from tolpack.runtime.array_types import Ints

# Tokens that are hashed at once: their n-grams take some hundred KB.
_BLOCK = 4096
_MAX_ORDER = 64
_MAX_HEADS = 4096
# Ids are below this, as 32-bit signed integers are, so that sums of products fit 64 bits.
ID_LIMIT = 2**31
# Headers of packs hold no -2^63 either: a sign and 63 bits.
_MULTIPLIERS = range(-(2**63) + 1, 2**63)


@dataclass(frozen=True, slots=True, eq=False)
class NGramHash:
    """The function from token ids to row numbers of one table.

    Head ``h`` of order ``n`` takes the ids of the token and the n - 1 before it, mixes them, and
    gives row ``offsets[h] + mixed mod sizes[h]``.

    Parameters
    ----------
    mixing : str
        ``"xor"``: XOR over k of ``id[t-k] · multipliers[k]``, in int64 with wrap-around.
        ``"sum"``: their sum, exact.
    orders, sizes, offsets : tuple of int
        By head: n, number of rows, and first row in the table.
    multipliers : tuple of int
        By position k, from the token itself backwards; as many as the highest order.
    pad : int
        Id that stands before the text, after `compressed_ids` are applied.
    boundary : int or None
        Id that ends a text, after `compressed_ids` are applied: n-grams do not reach over it, and
        `pad` stands in its place. It belongs to the text that it ends.
    compressed_ids : ndarray, optional
        uint32 (vocab,): the id that is hashed for each token id; ``None``: the token id itself.

    Raises
    ------
    ConfigError
        A value is out of range, or tuples disagree in length.
    """

    mixing: str
    orders: tuple[int, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    multipliers: tuple[int, ...]
    pad: int
    boundary: int | None = None
    compressed_ids: NDArray[np.uint32] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NGramHash):
            return NotImplemented
        mine, theirs = self.compressed_ids, other.compressed_ids
        if mine is None or theirs is None:
            return self._plain == other._plain and mine is theirs
        return self._plain == other._plain and np.array_equal(mine, theirs)

    def __hash__(self) -> int:
        return hash(self._plain)

    @property
    def _plain(self) -> tuple[object, ...]:
        heads = self.orders, self.sizes, self.offsets
        return self.mixing, *heads, self.multipliers, self.pad, self.boundary

    @property
    def vocab_size(self) -> int:
        """Token ids that a text may hold; they count from 0."""
        return ID_LIMIT if self.compressed_ids is None else len(self.compressed_ids)

    @property
    def heads(self) -> int:
        """Rows that each token touches."""
        return len(self.orders)

    @property
    def context(self) -> int:
        """How many tokens before the first one decide its rows."""
        return max(self.orders) - 1

    @property
    def table_rows(self) -> int:
        """Rows that the table must have."""
        return max(offset + size for offset, size in zip(self.offsets, self.sizes))

    def rows(self, token_ids: ArrayLike, history: ArrayLike | None = None) -> Ints:
        """Return the rows that tokens touch, int64 (…, tokens, heads).

        Parameters
        ----------
        token_ids : array_like of int
            (…, tokens): one text, or a batch of texts of the same length.
        history : array_like of int, optional
            (…, any number): the tokens before them, of which the last `context` count. Without it
            a text begins here.

        Raises
        ------
        TokenIdError
            An id is not an integer, negative, over the vocabulary of `compressed_ids` or 2^31 - 1;
            or `history` is of another batch.
        """
        stream = self.stream()
        if history is not None:
            stream.append(history)
        return stream.rows(token_ids)

    def stream(self) -> NGramStream:
        """Return an object that hashes texts piece by piece."""
        return NGramStream(self)

    def hashed_ids(self, token_ids: ArrayLike) -> Ints:
        """Return the ids that are hashed for `token_ids`, int64 of the same shape; errors as of
        `rows`.
        """
        known, ids = self.compressed_ids, _checked(token_ids, self.vocab_size)
        return ids if known is None else known[ids].astype(np.int64)


class NGramStream:
    """A text that is hashed piece by piece: rows are those of the whole text at once.

    It keeps the last `NGramHash.context` ids, and is for one thread.
    """

    def __init__(self, ngrams: NGramHash) -> None:
        self._ngrams = ngrams
        self._last = np.array(ngrams.orders) - 1
        self._sizes = np.array(ngrams.sizes, np.int64)
        self._offsets = np.array(ngrams.offsets, np.int64)
        self._multipliers = np.array(ngrams.multipliers, np.int64)
        self._before: Ints | None = None

    def rows(self, token_ids: ArrayLike) -> Ints:
        """Return the rows of the next tokens, as `NGramHash.rows` does, and go past them.

        The text stays where it is if an error is raised.
        """
        text, context = self._extended(token_ids), self._ngrams.context
        batch, tokens = text.shape[:-1], text.shape[-1] - context
        rows = np.empty((*batch, tokens, self._ngrams.heads), np.int64)
        step = max(1, _BLOCK // max(1, int(np.prod(batch))))
        for start in range(0, tokens, step):
            block = rows[..., start : start + step, :]
            window = self._window(text[..., start : start + step + context])
            np.remainder(self._mixed(window), self._sizes, out=block)
            block += self._offsets
        return rows

    def append(self, token_ids: ArrayLike) -> None:
        """Go past tokens whose rows are not asked for; errors as of `NGramHash.rows`."""
        self._extended(token_ids)

    def reset(self) -> None:
        """Begin a new text."""
        self._before = None

    def _extended(self, token_ids: ArrayLike) -> Ints:
        """Return the hashed ids of the context and of the next tokens, and keep the new context."""
        ids, context = self._ngrams.hashed_ids(token_ids), self._ngrams.context
        before = self._before
        if before is None:
            before = np.full((*ids.shape[:-1], context), self._ngrams.pad, np.int64)
        if before.shape[:-1] != ids.shape[:-1]:
            raise TokenIdError(
                f"token ids are of a batch of shape {ids.shape[:-1]}, and those before them of one "
                f"of {before.shape[:-1]}: give both of the same batch"
            )
        text = np.concatenate([before, ids], axis=-1)
        self._before = text[..., text.shape[-1] - context :].copy()
        return text

    def _window(self, text: Ints) -> list[Ints]:
        """Ids at distance 0, 1, … `context` from each token of `text` but the first `context`."""
        context, pad, boundary = self._ngrams.context, self._ngrams.pad, self._ngrams.boundary
        tokens = text.shape[-1] - context
        window = [text[..., context - k :][..., :tokens] for k in range(context + 1)]
        if boundary is not None:
            ended = np.zeros(window[0].shape, bool)
            for k in range(1, context + 1):
                ended |= window[k] == boundary
                window[k] = np.where(ended, pad, window[k])
        return window

    def _mixed(self, window: list[Ints]) -> Ints:
        """Mix the ids of `window`, each (…, tokens), for each head: int64 (…, tokens, heads)."""
        if self._ngrams.mixing == "sum":
            # Each multiplier is reduced first, which leaves remainders as they are.
            used = np.arange(len(window))[:, None] <= self._last
            weights: Ints = self._multipliers[:, None] % self._sizes * used
            return np.stack(window, axis=-1) @ weights
        by_order = np.empty((*window[0].shape, len(window)), np.int64)
        mixed = np.zeros(window[0].shape, np.int64)
        for k, ids in enumerate(window):
            mixed ^= ids * self._multipliers[k]
            by_order[..., k] = mixed
        return by_order[..., self._last]


def _checked(token_ids: ArrayLike, limit: int) -> Ints:
    """Return ids as int64 (…, tokens), or raise `TokenIdError`."""
    try:
        ids = np.asarray(token_ids)
    except ValueError as error:
        raise TokenIdError(f"token ids are not an array of integers: {error}") from error
    if ids.ndim == 0:
        raise TokenIdError("token ids have no dimension, expected (…, tokens): pass a list")
    if ids.size == 0:
        return np.empty(ids.shape, np.int64)
    if ids.dtype.kind not in "iu":
        raise TokenIdError(f"token ids are {ids.dtype}, expected integers")
    if ids.min() < 0 or ids.max() >= limit:
        wrong = ids[(ids < 0) | (ids >= limit)][0]
        raise TokenIdError(f"token id {wrong} is out of range 0 … {limit - 1}")
    return ids.astype(np.int64)


def _check(ngrams: NGramHash) -> None:
    """Raise `ConfigError` if a value of `ngrams` cannot be computed with."""
    if ngrams.mixing not in ("xor", "sum"):
        raise ConfigError(f"mixing is {ngrams.mixing!r}, expected 'xor' or 'sum'")
    heads = len(ngrams.orders)
    if not 1 <= heads <= _MAX_HEADS:
        raise ConfigError(f"orders are of {heads} heads, expected 1 … {_MAX_HEADS}")
    for name in ("sizes", "offsets"):
        if (found := len(getattr(ngrams, name))) != heads:
            raise ConfigError(f"{name} are of {found} heads, and orders of {heads}")
    _check_range("orders", ngrams.orders, range(1, _MAX_ORDER + 1))
    # Sums of products of ids and reduced multipliers fit 64 bits.
    most = 2**62 if ngrams.mixing == "xor" else 2**32 // max(ngrams.orders)
    _check_range("sizes", ngrams.sizes, range(1, most + 1))
    _check_range("offsets", ngrams.offsets, range(2**62))
    if len(ngrams.multipliers) != max(ngrams.orders):
        raise ConfigError(
            f"multipliers are {len(ngrams.multipliers)}, expected {max(ngrams.orders)}, the highest"
            " of orders"
        )
    _check_range("multipliers", ngrams.multipliers, _MULTIPLIERS)
    ends = (ngrams.pad,) if ngrams.boundary is None else (ngrams.pad, ngrams.boundary)
    _check_range("pad and boundary", ends, range(ID_LIMIT))
    known = ngrams.compressed_ids
    if known is not None and (known.dtype != np.uint32 or known.ndim != 1 or not known.size):
        raise ConfigError(
            f"compressed_ids are {known.dtype} {known.shape}, expected uint32 (vocab,)"
        )
    if known is not None and known.max() >= ID_LIMIT:
        raise ConfigError(f"compressed_ids reach {known.max()}, the limit is {ID_LIMIT - 1}")


def _check_range(name: str, values: tuple[int, ...], allowed: range) -> None:
    wrong = [value for value in values if not isinstance(value, int) or value not in allowed]
    if wrong:
        raise ConfigError(
            f"{name} hold {wrong[0]}, expected integers in {allowed[0]} … {allowed[-1]}"
        )
