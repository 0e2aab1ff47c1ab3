"""The n-gram hashes of model families, from the numbers in their configs.

=========  =======  ==========================================  ===================================
family     mixing   multipliers                                 rows of a head
=========  =======  ==========================================  ===================================
Qwen4Exp   XOR      splitmix64 of the seed, odd                 primes from the base on
Engram     XOR      numpy's default generator, odd              primes from the base on, used once
LongCat    sum      powers of the vocabulary's size             ratio · vocabulary + 2 · head + 1
=========  =======  ==========================================  ===================================
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError
from tolpack.ngrams.hashing import NGramHash
from tolpack.ngrams.primes import next_prime

_INT64_MAX = 2**63 - 1
_UINT64 = 2**64 - 1
# Factor of the layer in the seed of its multipliers, in Engram and Qwen4Exp alike.
_LAYER_SEED = 10007
# One is found in 0.3 ms.
_MAX_PRIMES = 4096


def qwen4_exp_hash(
    *,
    vocab_size: int,
    eos_token_id: int,
    ngram_size: int = 3,
    heads_per_ngram: int = 8,
    ngram_vocab_size_base: int = 20_000_000,
    seed: int = 1234,
    ple_layer_index: int = 0,
) -> NGramHash:
    """Return the hash of Qwen4Exp's n-gram embedding; arguments are named as in its config.

    N-grams never cross the end of a text, whose id also stands before it.

    Parameters
    ----------
    ple_layer_index : int
        Position of the layer in the config's ``ple_layer_ids``, which count from 1.

    Raises
    ------
    ConfigError
        A number is out of range, or no hash follows from it.

    References
    ----------
    ``Qwen4ExpTextNGramEmbedding`` of transformers 5.24.
    """
    orders = _orders(ngram_size, heads_per_ngram)
    _check_positive(vocab_size=vocab_size, ngram_vocab_size_base=ngram_vocab_size_base)
    primes = _Primes(len(orders) * (ple_layer_index + 1))
    sizes = primes.take(ngram_vocab_size_base, len(orders) * (ple_layer_index + 1))
    sizes = sizes[-len(orders) :]
    state = seed + _LAYER_SEED * ple_layer_index
    half = max(1, _INT64_MAX // vocab_size // 2)
    multipliers = [2 * (_splitmix64(state, k + 1) % half) + 1 for k in range(ngram_size)]
    return _made("xor", orders, sizes, multipliers, eos_token_id, boundary=eos_token_id)


def engram_hashes(
    *,
    layer_ids: Sequence[int],
    compressed_ids: NDArray[np.uint32],
    pad_id: int,
    engram_vocab_size: int | Sequence[int] = 16_000_000,
    max_ngram_size: int = 4,
    n_heads: int = 8,
    seed: int = 0,
    boundary: int | None = None,
) -> tuple[NGramHash, ...]:
    """Return the hash of each layer of Engram (arXiv 2601.07372), as the demo and DeepSeek-V4.1
    compute it.

    Parameters
    ----------
    layer_ids : sequence of int
        The model's layers with a table, in the order of its config: no prime is used twice.
    compressed_ids : ndarray
        uint32 (vocab,): see `NGramHash`; ids 0 … highest must all be used.
    pad_id : int
        Token id, before it is compressed, that stands before the text.
    engram_vocab_size : int or sequence of int
        Where the search for primes begins; a sequence has one number for each order from 2 on.
    max_ngram_size, n_heads : int
        The highest order, and the heads of each order.
    seed : int
        The demo's ``seed``; DeepSeek-V4.1 has none, which is 0.
    boundary : int, optional
        Token id, before it is compressed, over which n-grams do not reach: that of an image in
        DeepSeek-V4.1. Its own rows are used by nothing.

    Raises
    ------
    ConfigError
        A number is out of range, or no hash follows from it.
    """
    if not all(0 <= layer < 2**31 for layer in (seed, *layer_ids)):
        raise ConfigError(f"seed is {seed} and layer_ids are {layer_ids}, expected 0 … 2^31 - 1")
    orders = _orders(max_ngram_size, n_heads)
    bases = _bases(engram_vocab_size, max_ngram_size)
    count = int(compressed_ids.max()) + 1
    pad = _compressed("pad_id", pad_id, compressed_ids)
    if boundary is not None:
        _compressed("boundary", boundary, compressed_ids)
        # An id that no other token has, so that nothing else ends a text.
        compressed_ids = compressed_ids.copy()
        compressed_ids[boundary] = boundary = count
    primes = _Primes(len(orders) * len(layer_ids))
    hashes = []
    for layer in layer_ids:
        sizes = [size for base in bases for size in primes.take(base, n_heads)]
        drawn = np.random.default_rng(seed + _LAYER_SEED * layer).integers(
            0, max(1, _INT64_MAX // count // 2), max_ngram_size
        )
        multipliers = [2 * int(number) + 1 for number in drawn]
        hashes.append(_made("xor", orders, sizes, multipliers, pad, boundary, compressed_ids))
    return tuple(hashes)


def longcat_hash(
    *,
    vocab_size: int,
    eos_token_id: int,
    ngram_vocab_size_ratio: float = 78,
    emb_neighbor_num: int = 4,
    emb_split_num: int = 4,
) -> NGramHash:
    """Return the hash of LongCat-Flash-Lite's n-gram embeddings, which stand one after the other in
    the table; arguments are named as in its config.

    The ids of an n-gram are the digits of a number to the base of the vocabulary's size. N-grams
    never cross the end of a text, and 0 stands before it.

    Raises
    ------
    ConfigError
        A number is out of range, or no hash follows from it.
    """
    orders = _orders(emb_neighbor_num, emb_split_num)
    _check_positive(vocab_size=vocab_size, ngram_vocab_size_ratio=ngram_vocab_size_ratio)
    least = ngram_vocab_size_ratio * vocab_size
    sizes = [int(least + 2 * head + 1) for head in range(len(orders))]
    powers = [vocab_size**k for k in range(emb_neighbor_num)]
    return _made("sum", orders, sizes, powers, pad=0, boundary=eos_token_id)


def _made(
    mixing: str,
    orders: Sequence[int],
    sizes: Sequence[int],
    multipliers: Sequence[int],
    pad: int,
    boundary: int | None,
    compressed_ids: NDArray[np.uint32] | None = None,
) -> NGramHash:
    """Return a hash whose heads stand one after the other in the table."""
    offsets = (0, *accumulate(sizes[:-1]))
    numbers = tuple(orders), tuple(sizes), offsets, tuple(multipliers)
    return NGramHash(mixing, *numbers, pad, boundary, compressed_ids)


def _orders(highest: int, heads: int) -> list[int]:
    """Return the order of each head: `heads` of each order from 2 on."""
    if not (2 <= highest <= 64 and 1 <= heads <= 64):
        raise ConfigError(
            f"there are {heads} heads of each order up to {highest}, expected 1 … 64 heads of "
            "orders up to 2 … 64"
        )
    return [order for order in range(2, highest + 1) for _ in range(heads)]


def _bases(engram_vocab_size: int | Sequence[int], highest: int) -> Sequence[int]:
    """Return where the primes of each order begin."""
    if isinstance(engram_vocab_size, int):
        engram_vocab_size = [engram_vocab_size] * (highest - 1)
    if len(engram_vocab_size) != highest - 1:
        raise ConfigError(
            f"engram_vocab_size has {len(engram_vocab_size)} numbers, expected {highest - 1}, one "
            "for each order from 2 on"
        )
    for base in engram_vocab_size:
        _check_positive(engram_vocab_size=base)
    return engram_vocab_size


def _compressed(name: str, token: int, compressed_ids: NDArray[np.uint32]) -> int:
    """Return the compressed id of `token`, which is the argument `name`."""
    if not 0 <= token < len(compressed_ids):
        raise ConfigError(f"{name} is {token}, expected 0 … {len(compressed_ids) - 1}")
    return int(compressed_ids[token])


class _Primes:
    """Primes of which none is given twice; `count` of all that will be taken is checked."""

    def __init__(self, count: int) -> None:
        if count > _MAX_PRIMES:
            raise ConfigError(f"the hash has {count:,} heads in all layers, the limit is 4,096")
        self._used: set[int] = set()
        self._next: dict[int, int] = {}

    def take(self, base: int, count: int) -> list[int]:
        """Return the next `count` primes from `base` on."""
        found: list[int] = []
        for _ in range(count):
            prime = next_prime(self._next.get(base, base), self._used)
            self._next[base] = prime + 1
            self._used.add(prime)
            found.append(prime)
        return found


def _splitmix64(state: int, steps: int) -> int:
    """Return what the generator SplitMix64 (Steele, Lea and Flood) gives `steps` steps later."""
    value = (state + 0x9E3779B97F4A7C15 * (steps + 1)) & _UINT64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _UINT64
    return value ^ (value >> 31)


def _check_positive(**numbers: float) -> None:
    """Raise `ConfigError` for a number that is not positive or above 2^40."""
    for name, number in numbers.items():
        if not 0 < number <= 2**40:
            raise ConfigError(f"{name} is {number}, expected 1 … {2**40}")
