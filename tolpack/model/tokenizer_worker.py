"""The ``tokenizers`` library in a process of its own; see `tolpack.model.text`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tolpack.runtime.worker_process import Answer, Handler, serve


class TokenizerHandlers:
    """Answers the requests of `tolpack.model.text.TextTokenizer`."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def load(self, values: dict[str, Any], body: bytes) -> Answer:
        """Read a ``tokenizer.json``."""
        self._tokenizer = None
        self._tokenizer = Tokenizer.from_buffer(body)
        return {}, b""

    def size(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer the number of tokens."""
        return {"vocab_size": int(self._tokenizer.get_vocab_size())}, b""

    def encode(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer the token ids of a UTF-8 text, uint32, without special tokens."""
        found = self._tokenizer.encode(body.decode("utf-8"), add_special_tokens=False)
        return {}, np.asarray(found.ids, "<u4").tobytes()

    def texts(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer the texts of a JSON list of token ids."""
        return {}, json.dumps([self._text(token_id) for token_id in json.loads(body)]).encode()

    def decode(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer the text of a JSON list of token ids in UTF-8, without special tokens."""
        return {}, self._tokenizer.decode(json.loads(body)).encode()

    def special(self, values: dict[str, Any], body: bytes) -> Answer:
        """Answer a JSON object: the id of each special token by its spelling."""
        added = self._tokenizer.get_added_tokens_decoder()
        found = {one.content: number for number, one in added.items() if one.special}
        return {}, json.dumps(found).encode()

    def _text(self, token_id: int) -> str | None:
        known = 0 <= token_id < 1 << 32
        spelled = self._tokenizer.id_to_token(token_id) if known else None
        if spelled is None:
            return None
        # Some decoders strip the first space of a text: so take the text that a second one adds.
        once, twice = (
            self._tokenizer.decode([token_id] * count, skip_special_tokens=False)
            for count in (1, 2)
        )
        added = twice[len(once) :]
        return str(spelled) if not added or "\ufffd" in added else str(added)

    def table(self) -> dict[str, Handler]:
        """Return the handlers by name."""
        return {
            "load": self.load, "size": self.size, "encode": self.encode, "texts": self.texts,
            "decode": self.decode, "special": self.special,
        }  # fmt: skip


if __name__ == "__main__":
    serve(TokenizerHandlers().table())
