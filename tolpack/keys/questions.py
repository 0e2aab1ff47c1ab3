"""What users ask on the command line: layers, tokens by id or text, keys of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tolpack.errors import ConfigError
from tolpack.model.text import TextTokenizer

_MOST_SHOWN = 6


def parse_layers(value: str) -> tuple[int, ...]:
    """Parse layer numbers and ranges like ``0,3-5``: ascending, each once."""
    layers: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--layers {value!r} is not understood: expected 0,3 or 2-5")
        layers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


def parse_key(value: str) -> tuple[int, int]:
    """Parse ``LAYER:KEY``."""
    match = re.fullmatch(r"(\d{1,5}):(\d{1,8})", value.strip(), re.ASCII)
    if match is None:
        raise ConfigError(f"--key {value!r} is not understood: expected LAYER:KEY, like 0:526")
    return int(match[1]), int(match[2])


def find_tokens(
    values: Sequence[str], tokenizer: TextTokenizer | None, vocab_size: int
) -> tuple[int, ...]:
    """Return the token ids that `values` name: ids, or texts of one token each.

    A text of digits is an id, unless it stands in quotes.

    Raises
    ------
    ConfigError
        A text needs a tokenizer, or is none or several tokens, or a token outside the vocabulary.
    """
    return tuple(_find_token(value, tokenizer, vocab_size) for value in values)


def _find_token(value: str, tokenizer: TextTokenizer | None, vocab_size: int) -> int:
    if re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return int(value)
    if tokenizer is None:
        raise ConfigError(
            f"--token {value!r} is a text, and no tokenizer.json is beside the checkpoint: give "
            "--tokenizer tokenizer.json, or the token's id"
        )
    text = value[1:-1] if len(value) > 2 and value[0] == value[-1] in "'\"" else value
    ids = tokenizer.encode_for(text, vocab_size).tolist() if text else []
    if len(ids) == 1:
        return int(ids[0])
    raise ConfigError(f"--token {value!r} is {len(ids)} tokens: {_advice(text, ids, tokenizer)}")


def _advice(text: str, ids: list[int], tokenizer: TextTokenizer) -> str:
    """Say which token may be meant where a text is not one."""
    if not ids:
        return "give a text, or an id"
    if not text[0].isspace() and len(tokenizer.encode(f" {text}")) == 1:
        return f"words begin with a space: --token {f' {text}'!r}"
    texts = zip(ids, tokenizer.texts(ids))
    shown = ", ".join(f"{token} {name!r}" for token, name in list(texts)[:_MOST_SHOWN])
    return f"give one of them ({shown}{', …' if len(ids) > _MOST_SHOWN else ''})"
