"""Text and token ids for calibration and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.npy import read_npy


def read_token_ids(
    path: str | Path, vocab_size: int, tokenizer: str | Path | None = None
) -> NDArray[np.int64]:
    """Read token ids: from a ``.npy`` of integers, or by encoding a UTF-8 text file.

    The whole text is encoded once, without special tokens.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file, else a text file.
    vocab_size : int
        Every id must be below it.
    tokenizer : str or Path, optional
        A ``tokenizer.json`` of the ``tokenizers`` library; needed for text.

    Returns
    -------
    ndarray
        int64 (tokens,).

    Raises
    ------
    ConfigError
        The text cannot be read, the tokenizer is missing, or there are fewer than two tokens.
    CheckpointError
        An id is outside the vocabulary: tokenizer and checkpoint do not belong together.
    """
    path = Path(path)
    ids = _read_ids(path) if path.suffix == ".npy" else _encode(path, tokenizer)
    if ids.size < 2:
        raise ConfigError(f"{path} gives {ids.size} tokens: at least 2 are needed")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise CheckpointError(
            f"{path} gives token ids {low} … {high}, but the vocabulary has {vocab_size}: "
            "use the tokenizer that the checkpoint was trained with"
        )
    return ids


def find_tokenizer(checkpoint: Path, given: str | Path | None) -> Path | None:
    """Return the tokenizer to use: `given`, or ``tokenizer.json`` inside or beside `checkpoint`."""
    if given is not None:
        return Path(given)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    beside = folder / "tokenizer.json"
    return beside if beside.exists() else None


def _read_ids(path: Path) -> NDArray[np.int64]:
    ids = read_npy(path, "token ids")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"{path} must hold a one-dimensional array of integers")
    return ids.astype(np.int64)


def _encode(path: Path, tokenizer: str | Path | None) -> NDArray[np.int64]:
    if tokenizer is None:
        raise ConfigError(f"{path} is text: give its --tokenizer tokenizer.json, or ids as .npy")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "encoding text needs the tokenizers library: pip install 'tolpack[build]'"
        ) from error
    try:
        encoder = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises bare Exception on any bad file
        raise ConfigError(f"cannot read tokenizer {tokenizer}: {error}") from error
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read text {path}: {error}") from error
    return np.asarray(encoder.encode(text, add_special_tokens=False).ids, dtype=np.int64)
