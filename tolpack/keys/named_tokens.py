"""Tokens, layers and keys as people name them: ids or texts, ``0,3-5``, and ``LAYER:KEY``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tolpack.errors import ConfigError
from tolpack.model.text import TextTokenizer
from tolpack.runtime.array_types import Ints
from tolpack.runtime.number_ranges import parse_ranges
from tolpack.sources.arrays.npy import read_npy
from tolpack.storage.locations import Location

_ID = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"([0-9]{1,5}):([0-9]{1,8})")
_MOST_SHOWN = 6


def parse_layers(value: str) -> tuple[int, ...]:
    """Parse layer numbers and ranges like ``0,3-5``: ascending, each once.

    Raises
    ------
    ConfigError
        It is not understood.
    """
    return parse_ranges(value, "--layers", "0,3 or 2-5")


def parse_key(value: str) -> tuple[int, int]:
    """Parse ``LAYER:KEY``.

    Raises
    ------
    ConfigError
        It is not understood.
    """
    match = _KEY.fullmatch(value.strip())
    if match is None:
        raise ConfigError(f"key {value!r} is not understood: expected LAYER:KEY, like 0:526")
    return int(match[1]), int(match[2])


def parse_keys(value: str) -> Mapping[int, tuple[int, ...]]:
    """Parse keys like ``0:12,3:700``: numbers of keys by layer, ascending and each once.

    Raises
    ------
    ConfigError
        As `parse_key`.
    """
    found: dict[int, set[int]] = {}
    for layer, key in map(parse_key, value.split(",")):
        found.setdefault(layer, set()).add(key)
    return {layer: tuple(sorted(keys)) for layer, keys in sorted(found.items())}


def find_tokens(names: Sequence[str], tokenizer: TextTokenizer | None, vocab_size: int) -> Ints:
    """Return the ids of tokens that are named by id or by text: int64 (names,).

    Digits are an id, unless they stand in quotes. Any other text must be one token; most words have
    a space before them that belongs to the token.

    Raises
    ------
    ConfigError
        A text is no single token of the vocabulary, or there is no tokenizer to encode it with.
    """
    return np.array([_find_token(name, tokenizer, vocab_size) for name in names], np.int64)


def _find_token(name: str, tokenizer: TextTokenizer | None, vocab_size: int) -> int:
    if _ID.fullmatch(name):
        return int(name)
    if tokenizer is None:
        raise ConfigError(
            f"token {name!r} is a text, and there is no tokenizer.json beside the model: give "
            "--tokenizer tokenizer.json, or the token's id"
        )
    text = name[1:-1] if len(name) > 2 and name[0] == name[-1] in "'\"" else name
    ids = tokenizer.encode_for(text, vocab_size).tolist() if text else []
    if len(ids) == 1:
        return int(ids[0])
    raise ConfigError(f"token {name!r} is {len(ids)} tokens: {_advice(text, ids, tokenizer)}")


def _advice(text: str, ids: list[int], tokenizer: TextTokenizer) -> str:
    """Say which token may be meant where a text is not one."""
    if not ids:
        return "give a text, or an id"
    if not text[0].isspace() and len(tokenizer.encode(f" {text}")) == 1:
        return f"words begin with a space: {f' {text}'!r}"
    texts = zip(ids, tokenizer.texts(ids))
    shown = ", ".join(f"{token} {name!r}" for token, name in list(texts)[:_MOST_SHOWN])
    return f"give one of them ({shown}{', …' if len(ids) > _MOST_SHOWN else ''})"


def read_tokens(path: Location) -> Ints:
    """Read token ids from a ``.npy`` of integers: int64 (tokens,).

    Raises
    ------
    ConfigError
        It cannot be read, or is not a one-dimensional array of integers.
    """
    ids = read_npy(path, "tokens")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"tokens {path} are {ids.dtype} {ids.shape}, expected integers (tokens,)")
    if ids.dtype == np.uint64 and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise ConfigError(f"tokens {path} hold {ids.max()}, which is not a token id")
    return ids.astype(np.int64)
