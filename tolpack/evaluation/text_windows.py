"""The texts of an evaluation, and the windows that they are cut into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError
from tolpack.model.language_model import LanguageModel
from tolpack.model.perplexity import LOGITS_PER_BATCH

# Windows by default: models that were trained on very long ones would have few of them.
_MAX_CONTEXT, _LEAST_LIMIT = 2048, 512


def checked_context(model: LanguageModel, context: int | None) -> int:
    """Return the length of windows: `context`, or one short enough for their logits, and for
    several windows.

    Raises
    ------
    ConfigError
        The model has fewer positions, or does not say how many.
    """
    longest = model.max_position_embeddings
    if context is not None:
        if longest is not None and context > longest:
            raise ConfigError(
                f"--context {context} is longer than the {longest} positions of the model "
                f"(max_position_embeddings): give {longest} or less"
            )
        return context
    if longest is None:
        raise ConfigError("the config has no max_position_embeddings: give --context N")
    return min(longest, _MAX_CONTEXT, max(_LEAST_LIMIT, LOGITS_PER_BATCH // model.vocab_size))


def text_names(texts: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the names of texts, of which there is one at least and none twice."""
    names = tuple(map(str, texts))
    if not names:
        raise ConfigError("no text is given: name one at least")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"text {twice[0]} is given twice: name each text once")
    return names


def window_tokens(ids: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    """Return the tokens that each window of a text scores, int64 (windows,)."""
    full, rest = divmod(ids.size - 1, context)
    return np.array([context] * full + [rest] * (rest > 0), np.int64)
