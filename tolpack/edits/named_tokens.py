"""Tokens, layers and keys as people name them: ids or texts, ``0,3-5``, and ``LAYER:KEY``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tolpack.errors import ConfigError
from tolpack.model.text import TextTokenizer
from tolpack.runtime.array_types import Ints
from tolpack.sources.arrays.npy import read_npy
from tolpack.storage.locations import Location

_ID = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_KEY = re.compile(r"([0-9]{1,6}):([0-9]{1,9})")


def is_token_id(name: str) -> bool:
    """Whether `name` is a token id, and no text of a token."""
    return _ID.fullmatch(name) is not None


def find_tokens(names: Sequence[str], tokenizer: TextTokenizer | None) -> Ints:
    """Return the ids of tokens that are named by id or by text: int64 (names,).

    Digits are an id. Any other text is encoded, and must be one token; most words have a space
    before them that belongs to the token.

    Raises
    ------
    ConfigError
        A text is no single token, or there is no tokenizer to encode it with.
    """
    return np.array([_find_token(name, tokenizer) for name in names], np.int64)


def _find_token(name: str, tokenizer: TextTokenizer | None) -> int:
    if is_token_id(name):
        return int(name)
    if tokenizer is None:
        raise ConfigError(
            f"token {name!r} is no token id, and there is no tokenizer to encode it with: give "
            "--tokenizer tokenizer.json, or the token's id"
        )
    ids = tokenizer.encode(name).tolist()
    if len(ids) == 1:
        return int(ids[0])
    pieces = ", ".join(f"{text!r} ({one})" for one, text in zip(ids, tokenizer.texts(ids)))
    raise ConfigError(
        f"{name!r} is {len(ids)} tokens: {pieces or 'none'}; name one token, with the space before "
        "it if it has one"
    )


def read_tokens(path: Location) -> Ints:
    """Read token ids from a ``.npy`` of integers: int64 (tokens,).

    Raises
    ------
    ConfigError
        It cannot be read, or is no one-dimensional array of integers.
    """
    ids = read_npy(path, "tokens")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"tokens {path} are {ids.dtype} {ids.shape}, expected integers (tokens,)")
    if ids.dtype == np.uint64 and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise ConfigError(f"tokens {path} hold {ids.max()}, which is no token id")
    return ids.astype(np.int64)


def parse_keys(value: str) -> Mapping[int, tuple[int, ...]]:
    """Parse keys like ``0:12,3:700``: numbers of keys by layer, ascending and each once.

    Raises
    ------
    ConfigError
        It is not understood.
    """
    found: dict[int, set[int]] = {}
    for part in value.split(","):
        match = _KEY.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"--suppress-keys {value!r} is not understood at {part.strip()!r}: expected "
                "LAYER:KEY,… such as 0:12,3:700"
            )
        found.setdefault(int(match[1]), set()).add(int(match[2]))
    return {layer: tuple(sorted(keys)) for layer, keys in sorted(found.items())}


def parse_layers(value: str) -> tuple[int, ...]:
    """Parse layers like ``0,3-5``: ascending, each once.

    Raises
    ------
    ConfigError
        It is not understood.
    """
    layers: set[int] = set()
    for part in value.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--layers {value!r} is not understood: expected 0,3-5")
        layers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))
