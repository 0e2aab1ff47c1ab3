"""Text and token ids: for calibration, evaluation, and for showing tokens by their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.npy import read_npy


class TextTokenizer:
    """Token ids of a text, and the text of a token id.

    Parameters
    ----------
    path : str or Path
        A ``tokenizer.json`` of the ``tokenizers`` library.

    Raises
    ------
    ConfigError
        The file cannot be read, or the library is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError(
                "text of tokens needs the tokenizers library: pip install 'tolpack[build]'"
            ) from error
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception on any bad file
            raise ConfigError(f"cannot read tokenizer {path}: {error}") from error
        self.path = Path(path)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that it knows."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the token ids of `text`, int64 (tokens,), without special tokens."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # the command line passes other bytes on like this
            raise ConfigError(f"the text is no valid UTF-8: {error}") from error
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, dtype=np.int64)

    def encode_for(self, text: str, vocab_size: int) -> NDArray[np.int64]:
        """Return the token ids of `text`, int64 (tokens,), all of them below `vocab_size`.

        Raises
        ------
        ConfigError
            The text has no tokens, or one that is outside the vocabulary.
        """
        ids = self.encode(text)
        if not ids.size:
            raise ConfigError("the text has no tokens: give one that is not empty")
        highest = int(ids.max())
        if highest >= vocab_size:
            raise ConfigError(
                f"tokenizer {self.path} gives token id {highest} ({self.text(highest)!r}), but the "
                f"pack has {vocab_size} tokens: use the tokenizer that its model was trained with"
            )
        return ids

    def text(self, token_id: int) -> str | None:
        """Return what a token adds to a text that goes before it; ``None`` for an unknown id.

        A token that is no whole character comes as the tokenizer's file spells it.
        """
        spelled = self._tokenizer.id_to_token(token_id) if token_id < 1 << 32 else None
        if spelled is None:
            return None
        # Some decoders strip the first space of a text: so what the second of two adds.
        once, twice = (
            self._tokenizer.decode([token_id] * count, skip_special_tokens=False)
            for count in (1, 2)
        )
        added = twice[len(once) :]
        return str(spelled) if not added or "\ufffd" in added else str(added)


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
    encoder = TextTokenizer(tokenizer)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read text {path}: {error}") from error
    return encoder.encode(text)
