"""Kinds of tokens by their texts alone, to ask whether tokens of similar keys are of one kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tolpack.runtime.array_types import Ints

KINDS = (
    "word", "capitalized word", "part of a word", "capitalized part", "capitals", "number", "sign",
    "space", "no text",
)  # fmt: skip


def kind_of(text: str | None) -> str:
    """Return the kind of a token's text: one of `KINDS`.

    A word begins with a space; letters without one are a part of a word, or the word that begins a
    text.
    """
    if not text:
        return "no text"
    bare = text.strip()
    if not bare:
        return "space"
    if any(c.isdigit() for c in bare):
        return "number"
    if not any(c.isalpha() for c in bare):
        return "sign"
    if len(bare) > 1 and bare.isupper():
        return "capitals"
    capital = next(c for c in bare if c.isalpha()).isupper()
    if text[0].isspace():
        return "capitalized word" if capital else "word"
    return "capitalized part" if capital else "part of a word"


def kinds_of(texts: Sequence[str | None]) -> Ints:
    """Return the number in `KINDS` of each text: int64 (texts,)."""
    numbers = {kind: number for number, kind in enumerate(KINDS)}
    return np.array([numbers[kind_of(text)] for text in texts], np.int64)
