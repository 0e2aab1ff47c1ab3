"""Files that are given as texts and tokenizers: what they are, by their first bytes."""

from __future__ import annotations

from tolpack.container.file_kind import (
    CONFIG,
    EMPTY,
    HTML,
    JSON,
    LFS,
    NPY,
    TEXT,
    TOKENIZER,
    file_kind,
    kind_of_bytes,
)
from tolpack.errors import ConfigError
from tolpack.storage.inputs import InputPath, open_stream

# Kinds whose every byte may be meant as text.
_TEXTS = (TEXT, HTML, JSON)
_LINES = (".jsonl", ".ndjson")
_START_BYTES = 4096


def check_text_file(path: InputPath) -> None:
    """Refuse a file that is neither text nor ``.npy``; unknown bytes pass, and fail as UTF-8.

    Raises
    ------
    ConfigError
        It cannot be read, or is empty or of another kind; the message says of which.
    """
    try:
        with open_stream(path) as file:
            file.read(1)
    except OSError as error:
        reason = "it is a folder, expected a file" if path.is_dir() else error.strerror or error
        raise ConfigError(f"cannot read text {path}: {reason}") from error
    kind = file_kind(path)
    if path.suffix in _LINES:
        raise ConfigError(
            f"text {path} holds JSON lines, whose names and quotation marks would be taken for "
            "text: save what they say as plain text"
        )
    if kind is None or kind in _TEXTS or path.suffix == ".npy":
        return
    if kind is EMPTY:
        raise ConfigError(f"text {path} is empty: give one of at least 2 tokens")
    remedy = "rename it to end in .npy" if kind is NPY else kind.advice
    if kind in (TOKENIZER, CONFIG):
        remedy = "" if kind is CONFIG else "it goes to --tokenizer"
    expected = "expected plain text, or token ids as .npy"
    raise ConfigError(f"text {path} is {kind.name}, {expected}{remedy and ': '}{remedy}")


def check_tokenizer_file(path: InputPath) -> None:
    """Look at the first bytes of a tokenizer; errors as of `check_tokenizer_bytes`, and a
    `ConfigError` if it cannot be read.
    """
    try:
        with open_stream(path) as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read tokenizer {path}: {error.strerror or error}") from error
    check_tokenizer_bytes(path, start)


def check_tokenizer_bytes(path: InputPath, data: bytes) -> None:
    """Refuse what is not a ``tokenizer.json``, by its first bytes; JSON and unknown bytes pass.

    Raises
    ------
    ConfigError
        It is of another kind.
    """
    expected = "expected the tokenizer.json of a model"
    if path.suffix == ".model":
        raise ConfigError(
            f"tokenizer {path} is a SentencePiece model, {expected}: transformers writes one with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    kind = kind_of_bytes(data[:_START_BYTES], path.suffix)
    if kind is None or kind in (TOKENIZER, JSON):
        return
    remedy = f": {kind.advice}" if kind is LFS else ""
    raise ConfigError(f"tokenizer {path} is {kind.name}, {expected}{remedy}")
