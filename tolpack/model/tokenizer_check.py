"""Whether a tokenizer belongs to a model: what is said of it, warned of and refused."""

from __future__ import annotations

import numpy as np

from tolpack.errors import ConfigError
from tolpack.model.plausibility import chance_warning
from tolpack.model.text import TextTokenizer, find_tokenizer, tokenizer_digest
from tolpack.runtime.progress import Reporter
from tolpack.storage.inputs import InputPath

# Models have rows for padding: up to the next multiple of 128, and 2.4 % in some (102,400 for
# 100,015 tokens).
_PADDING, _PADDING_SHARE = 128, 0.05
# Tokenizers have tokens that no text is encoded to and a model may lack, such as one for padding.
_ADDED, _ADDED_SHARE = 16, 0.001
# Both tokenizers encode so much of the text, where there is another one beside the checkpoint.
_COMPARED_BYTES = 1 << 16
_SAMPLE = "It was 12:30 on May 5, 1997; she said: “Don't wait.” def f(x): return x_1 + [2]\n"


class TokenizerCheck:
    """Says which tokenizer encodes texts for a model, and holds it against the model.

    Parameters
    ----------
    checkpoint : InputPath, optional
        The model, beside which its own tokenizer may be.
    vocab_size : int
        Tokens of the model.
    reporter : Reporter
        Is told.
    """

    def __init__(self, checkpoint: InputPath | None, vocab_size: int, reporter: Reporter) -> None:
        self._checkpoint, self._vocab_size = checkpoint, vocab_size
        self._reporter = reporter
        self._too_few = False

    def __call__(self, tokenizer: TextTokenizer, text: bytes = b"") -> None:
        """Say which tokenizer it is that encodes `text`, and warn if it may be another model's.

        Raises
        ------
        ConfigError
            It has more tokens than the model.
        """
        self.check_size(str(tokenizer.path), tokenizer.vocab_size)
        own = None if self._checkpoint is None else find_tokenizer(self._checkpoint, None)
        if own is not None and _differ(tokenizer, own, text[:_COMPARED_BYTES]):
            self._reporter.warn(
                f"tokenizer {tokenizer.path} encodes text differently from the one beside the "
                f"checkpoint, {own}: leave --tokenizer out unless the model was trained with it"
            )

    def check_size(self, name: str, tokens: int) -> None:
        """Say which tokenizer it is, and hold its size against the model's vocabulary.

        Raises
        ------
        ConfigError
            It has more tokens than the model.
        """
        size = self._vocab_size
        self._reporter.say_once(f"tokenizer: {name} ({tokens:,} tokens)")
        if tokens > size + max(_ADDED, _ADDED_SHARE * size):
            raise ConfigError(
                f"tokenizer {name} has {tokens:,} tokens, but the model has {size:,}: use the "
                "tokenizer that the model was trained with"
            )
        self._too_few = tokens < size - max(_PADDING, _PADDING_SHARE * size)
        if self._too_few:
            self._reporter.warn(
                f"tokenizer {name} has {tokens:,} tokens, but the model has {size:,}: it is "
                "probably another model's"
            )

    def judge(self, ppl: float, text: str, *, refuse: bool = False) -> None:
        """Warn if the model predicts a text about as chance does, by its own perplexity.

        Raises
        ------
        ConfigError
            With `refuse`: it does worse than chance, and the tokenizer has too few tokens besides.
            Either alone may be right: a model that is not trained yet is built for trials, and a
            large vocabulary may have tokens in reserve.
        """
        found = chance_warning(ppl, self._vocab_size, text)
        if found is not None and refuse and self._too_few and ppl > self._vocab_size:
            raise ConfigError(
                f"the model predicts {text} worse than chance: perplexity {ppl:,.0f} with a "
                f"vocabulary of {self._vocab_size:,}, and the tokenizer has fewer tokens than "
                "that: use the tokenizer that the model was trained with"
            )
        if found is not None:
            self._reporter.warn(found)


def _differ(tokenizer: TextTokenizer, own: InputPath, text: bytes) -> bool:
    """Whether two tokenizers encode a text to other ids; files may differ and do so alike."""
    if own == tokenizer.path:
        return False
    try:
        if tokenizer_digest(own) == tokenizer_digest(tokenizer.path):
            return False
        other = TextTokenizer(own)
        sample = _SAMPLE.encode() + text
        return not np.array_equal(other.encode_utf8(sample), tokenizer.encode_utf8(sample))
    except ConfigError:  # it cannot be read, and is not used
        return False
