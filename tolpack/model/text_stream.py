"""The text of token ids, one after the other, as a terminal can show it.

A token may end within a character of UTF-8, and decoders strip the first space of a text. So tokens
are decoded together with those before them, and text is given out once its last character is whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.model.text import TextTokenizer

_UNKNOWN = "\ufffd"
# A character has at most four bytes: after more tokens that are not whole, the text has none.
_MOST_HELD = 8


class TextStream:
    """Gives the text that each token adds.

    Parameters
    ----------
    tokenizer : TextTokenizer
        Decodes the tokens.
    before : sequence of int
        Token ids of the text before the first one.
    """

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # Tokens whose text was given out, as far as the next ones need them; and those held back.
        self._shown, self._held = list(before)[-_MOST_HELD:], list[int]()

    def add(self, token_id: int) -> str:
        """Return the text that is complete with this token; empty if it ends within a character."""
        self._held.append(token_id)
        text = self._held_text()
        if len(self._held) < _MOST_HELD and (not text or text.endswith(_UNKNOWN)):
            return ""
        self._shown, self._held = self._held, []
        return text

    def end(self) -> str:
        """Return the text of the tokens that are still held back."""
        text = self._held_text() if self._held else ""
        self._shown, self._held = self._held or self._shown, []
        return text

    def _held_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._held)[len(before) :]
