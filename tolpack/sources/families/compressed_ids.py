"""The ids that Engram hashes: one for all tokens whose texts differ in case, accents or spaces.

They follow from the model's ``tokenizer.json``. The ``tokenizers`` library reads it in a process of
its own, as `tolpack.runtime.worker_process` says.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.runtime.worker_process import Request, WorkerError, WorkerProcess
from tolpack.storage.inputs import InputPath, read_whole

_WORKER = "tolpack.sources.families.compressed_ids_worker"
_MAX_BYTES = 256 << 20
# Limits: a constant, and more for each byte of the file. Measured: 129,280 tokens in 3 MB take
# 0.5 s and 53 MB.
_SECONDS, _BYTE_SECONDS = 1.0, 5e-6
_MEMORY_BYTES, _BYTE_MEMORY = 64 << 20, 160


def compressed_token_ids(tokenizer: InputPath) -> NDArray[np.uint32]:
    """Return the id that Engram hashes for each token id, uint32 (tokens,).

    Ids count from 0 in the order in which texts are first seen. Texts are compared after NFKC, NFD,
    without accents, in lower case, with runs of spaces as one, and stripped; a token that is no
    whole character is compared by its spelling.

    Parameters
    ----------
    tokenizer : Path or RemotePath
        The model's ``tokenizer.json``.

    Raises
    ------
    CheckpointError
        It is missing, cannot be read or has no tokens, or the ``tokenizers`` library is not
        installed or fails on it.

    References
    ----------
    ``CompressedTokenizer`` of the demo of arXiv 2601.07372.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise CheckpointError(
            "the n-gram hash of this model needs the tokenizers library: pip install "
            "'tolpack[build]'"
        )
    try:
        data = read_whole(tokenizer, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(
            f"the n-gram hash of this model needs its tokenizer, but {tokenizer} cannot be read "
            f"({error.strerror or error}): copy the model's tokenizer.json there"
        ) from error
    seconds, memory = _SECONDS + len(data) * _BYTE_SECONDS, _MEMORY_BYTES + len(data) * _BYTE_MEMORY
    worker = WorkerProcess(_WORKER)
    try:
        answer = worker.ask(Request("compress", {}, data, seconds, memory))[1]
    except WorkerError as error:
        raise CheckpointError(f"cannot read tokenizer {tokenizer}: {error}") from error
    finally:
        worker.close()
    if not answer:
        raise CheckpointError(f"tokenizer {tokenizer} has no tokens: copy it again")
    return np.frombuffer(answer, "<u4").astype(np.uint32)
