"""Texts as token ids, and the texts of token ids.

The ``tokenizers`` library panics or aborts on some files, and a pattern in one may take for ever.
So it runs in a process of its own (`tolpack.runtime.worker_process`). Its limits on time and memory
follow from the length of the file or the text.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError, ConfigError
from tolpack.model.text_files import check_text_file, check_tokenizer_bytes, check_tokenizer_file
from tolpack.runtime.worker_process import Answer, Request, WorkerError, WorkerProcess
from tolpack.sources.arrays.npy import read_npy
from tolpack.storage.inputs import InputPath, input_path, read_whole
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath

_WORKER = "tolpack.model.tokenizer_worker"
# Files of the largest vocabularies have some 35 MB.
_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_TEXT_BYTES = 16 << 30
# Limits: a constant, and more for each byte of the file or of the text. Measured: a byte of
# a tokenizer.json takes 0.07 µs and 18 bytes of memory (BPE, 128,000 tokens) to 45 (Unigram,
# 250,000); a byte of a text 0.6 µs and 180 bytes.
_SECONDS = 0.8
_LOAD_SECONDS, _LOAD_BYTES = 1e-6, 128
_ENCODE_SECONDS, _ENCODE_BYTES = 1e-5, 512
_TEXT_SECONDS, _TEXT_BYTES = 1e-3, 1024  # for each token id
_MEMORY_BYTES = 48 << 20
_CHECKED_BYTES = 1 << 20


class TextTokenizer:
    """Encodes texts to token ids, and gives the texts of token ids.

    Parameters
    ----------
    path : str or Path
        A ``tokenizer.json`` of the ``tokenizers`` library.

    Raises
    ------
    ConfigError
        The file cannot be read, or the library is not installed, or it fails on this file; all
        methods raise it too.
    """

    def __init__(self, path: Location | RemotePath) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise ConfigError(
                "text of tokens needs the tokenizers library: pip install 'tolpack[build]'"
            )
        self.path = input_path(path)
        data = _tokenizer_bytes(path)
        check_tokenizer_bytes(self.path, data)
        load = _request("load", data, len(data) * _LOAD_SECONDS, len(data) * _LOAD_BYTES)
        self._worker = WorkerProcess(_WORKER, load)
        self._vocab_size = int(self._ask(_request("size", b"", 0, 0))[0]["vocab_size"])

    @property
    def vocab_size(self) -> int:
        """Number of its tokens."""
        return self._vocab_size

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the token ids of `text`, int64 (tokens,), without special tokens."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:  # the command line passes other bytes on like this
            raise ConfigError(f"the text is not valid UTF-8: {error}") from error
        return self.encode_utf8(data)

    def encode_utf8(self, text: bytes) -> NDArray[np.int64]:
        """Return the token ids of a text in UTF-8, as `encode` does."""
        count = len(text)
        request = _request("encode", text, count * _ENCODE_SECONDS, count * _ENCODE_BYTES)
        return np.frombuffer(self._ask(request)[1], "<u4").astype(np.int64)

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
        """Return the text that a token adds to the text before it; ``None`` for an unknown id.

        A token that is not a whole character is spelled as in the tokenizer's file.
        """
        return self.texts([token_id])[0]

    def texts(self, token_ids: Sequence[int]) -> list[str | None]:
        """Return the `text` of each of many token ids."""
        ids, count = json.dumps(list(map(int, token_ids))).encode(), len(token_ids)
        answer = self._ask(_request("texts", ids, count * _TEXT_SECONDS, count * _TEXT_BYTES))
        return list(json.loads(answer[1]))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens and with U+FFFD for bad UTF-8."""
        ids, count = json.dumps(list(map(int, token_ids))).encode(), len(token_ids)
        request = _request("decode", ids, count * _TEXT_SECONDS, count * _TEXT_BYTES)
        return self._ask(request)[1].decode()

    def special_tokens(self) -> dict[str, int]:
        """Return the ids of the special tokens, such as ``</s>``, by their spelling."""
        return dict(json.loads(self._ask(_request("special", b"", 0, 0))[1]))

    def _ask(self, request: Request) -> Answer:
        try:
            return self._worker.ask(request)
        except WorkerError as error:
            raise ConfigError(
                f"cannot read tokenizer {self.path}, or encode with it: {error}"
            ) from error


def _tokenizer_bytes(path: Location | RemotePath) -> bytes:
    try:
        return read_whole(path, _MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read tokenizer {path}: {error.strerror or error}") from error


def _request(name: str, body: bytes, more_seconds: float, more_bytes: int) -> Request:
    return Request(name, {}, body, _SECONDS + more_seconds, _MEMORY_BYTES + more_bytes)


def read_token_ids(
    path: Location | RemotePath,
    vocab_size: int,
    tokenizer: Location | RemotePath | None = None,
    check: Callable[[TextTokenizer, bytes], object] | None = None,
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
    check : callable, optional
        Is given the tokenizer and the text before it is encoded, and may refuse them.

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
    path = input_path(path)
    ids = _read_ids(path) if path.suffix == ".npy" else _encode(path, tokenizer, check)
    if ids.size < 2:
        raise ConfigError(f"{path} gives {ids.size} tokens: at least 2 are needed")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise CheckpointError(
            f"{path} gives token ids {low} … {high}, but the vocabulary has {vocab_size}: "
            "use the tokenizer that the checkpoint was trained with"
        )
    return ids


def tokenizer_digest(path: Location | RemotePath) -> str:
    """Return the SHA-256 of a tokenizer's file, in hex.

    Raises
    ------
    ConfigError
        It cannot be read.
    """
    return hashlib.sha256(_tokenizer_bytes(path)).hexdigest()


def find_tokenizer(checkpoint: InputPath, given: Location | RemotePath | None) -> InputPath | None:
    """Return the tokenizer to use: `given`, or ``tokenizer.json`` inside or beside `checkpoint`."""
    if given is not None:
        return input_path(given)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    beside = folder / "tokenizer.json"
    return beside if beside.exists() else None


def _read_ids(path: InputPath) -> NDArray[np.int64]:
    ids = read_npy(path, "token ids")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"{path} must hold a one-dimensional array of integers")
    return ids.astype(np.int64)


def _encode(
    path: InputPath,
    tokenizer: Location | RemotePath | None,
    check: Callable[[TextTokenizer, bytes], object] | None,
) -> NDArray[np.int64]:
    check_text_file(path)
    if tokenizer is None:
        raise _without_tokenizer(path)
    encoder = TextTokenizer(tokenizer)
    try:
        text = read_whole(path, _MAX_TEXT_BYTES)
        _check_utf8(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"{error}: save it as UTF-8"
        raise ConfigError(f"cannot read text {path}: {reason}") from error
    if b"\r" in text:  # as Python reads text files
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if check is not None:
        check(encoder, text)
    return encoder.encode_utf8(text)


def check_calibration_text(
    text: Location | RemotePath, tokenizer: Location | RemotePath | None
) -> None:
    """Look at the first bytes of a text and of its tokenizer, before anything is encoded.

    Raises
    ------
    ConfigError
        One of them cannot be read or is of another kind, or the tokenizer is missing.
    """
    path = input_path(text)
    check_text_file(path)
    if path.suffix == ".npy":
        return
    if tokenizer is None:
        raise _without_tokenizer(path)
    check_tokenizer_file(input_path(tokenizer))


def _without_tokenizer(path: InputPath) -> ConfigError:
    return ConfigError(f"{path} is text: give its --tokenizer tokenizer.json, or ids as .npy")


def _check_utf8(text: bytes) -> None:
    """Raise `UnicodeDecodeError` unless `text` is UTF-8, without all of it decoded in memory."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(text), _CHECKED_BYTES):
        decoder.decode(text[start : start + _CHECKED_BYTES])
    decoder.decode(b"", final=True)
