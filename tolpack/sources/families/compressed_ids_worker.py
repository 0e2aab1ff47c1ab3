"""Compresses token ids in a process of its own; see `tolpack.sources.families.compressed_ids`."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers

from tolpack.runtime.worker_process import Answer, serve

# Stands for the text of a single space while texts are stripped: a code point without a meaning.
_SPACE = "\ue000"


def compress(values: dict[str, Any], body: bytes) -> Answer:
    """Answer the compressed id of each token of a ``tokenizer.json``, uint32."""
    tokenizer = Tokenizer.from_buffer(body)
    normalizer = _normalizer()
    seen: dict[str, int] = {}
    ids = [
        seen.setdefault(_key(tokenizer, normalizer, token), len(seen))
        for token in range(tokenizer.get_vocab_size())
    ]
    return {}, np.asarray(ids, "<u4").tobytes()


def _key(tokenizer: Any, normalizer: Any, token: int) -> str:
    """Return what tokens of the same compressed id have in common."""
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    if "\ufffd" in text:
        return str(tokenizer.id_to_token(token))
    return str(normalizer.normalize_str(text)) or text


def _normalizer() -> Any:
    """Return what texts go through before they are compared."""
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex("^ $"), _SPACE),
            normalizers.Strip(),
            normalizers.Replace(_SPACE, " "),
        ]
    )


if __name__ == "__main__":
    serve({"compress": compress})
