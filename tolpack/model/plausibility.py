"""What makes measured numbers doubtful: how much text they need, and what no sound ones look like.

A model that predicts a text at perplexity ``V``, the size of its vocabulary, does no better than
one that holds every token equally likely. Trained models are far from that on any text in their
own tokens: the models here of 4,096 and 8,192 tokens have perplexities of 68 and 140 on text that
they were not trained on. With the tokens of another tokenizer one had 16,330.
"""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.runtime.sizes import counted, plus_minus

# Tokens that docs/choosing-settings.md asks for: counts and losses of fewer say little of others.
LEAST_CALIBRATION_TOKENS = 100_000
# Tokens and windows of an evaluation whose standard errors can be relied on.
LEAST_TOKENS, LEAST_WINDOWS = 10_000, 10
# A perplexity of so much of the vocabulary's size is next to chance.
_CHANCE = 0.5
# A perplexity lower by this much, in percent, and by so many standard errors, is not chance.
_FALL_PCT, _FALL_ERRORS = -1.0, 3
PROVISIONAL = "so its numbers are provisional"
UNLIKE_TEXT = "this text is unlike the model's training text, or its tokenizer is another one"


def chance_warning(ppl: float, vocab_size: int, text: str) -> str | None:
    """Return a warning if a model predicts `text` about as chance does, by its own perplexity."""
    if ppl < _CHANCE * vocab_size:
        return None
    how = "hardly" if ppl < vocab_size else "no"
    return (
        f"the model predicts {text} {how} better than chance: perplexity {ppl:,.0f} with a "
        f"vocabulary of {vocab_size:,}; its token ids are probably of another tokenizer, or the "
        "model is not trained"
    )


def falls(increase_pct: float, error_pct: float | None) -> bool:
    """Whether perplexity falls by more than chance: worse rows then do better, which says nothing
    for them.
    """
    return increase_pct < min(_FALL_PCT, -_FALL_ERRORS * (error_pct or 0.0))


def fall_warning(increases: Sequence[tuple[str, float, float | None]]) -> str | None:
    """Return a warning if perplexity falls with packs; `increases`: their names, increases of
    perplexity in percent, and standard errors.
    """
    found = [one for one in increases if falls(*one[1:])]
    if not found:
        return None
    name, increase, error = min(found, key=lambda one: one[1])
    packs = f"with {name}" if len(found) == 1 else f"with {len(found)} packs, most with {name}"
    return (
        f"perplexity falls {packs}, though its rows are worse than the checkpoint's "
        f"({plus_minus(increase, error, '+.3f')} %): {UNLIKE_TEXT}; judge by the KL divergence"
    )


def short_text_warning(
    tokens: int, windows: int, context: int, subject: str = "the evaluation"
) -> str | None:
    """Return a warning if an evaluation, or one of its texts, has few tokens, or few windows."""
    if tokens >= LEAST_TOKENS and windows >= LEAST_WINDOWS:
        return None
    return (
        f"{subject} has {counted(tokens, 'token')} in {counted(windows, 'window')} of "
        f"{context}, {PROVISIONAL}: give {LEAST_TOKENS:,} tokens or "
        f"more, in {LEAST_WINDOWS} windows at least"
    )


def short_calibration_warning(tokens: int) -> str | None:
    """Return a warning if a calibration text is short."""
    if tokens >= LEAST_CALIBRATION_TOKENS:
        return None
    return (
        f"the calibration text has {counted(tokens, 'token')}: give {LEAST_CALIBRATION_TOKENS:,} "
        "or more, of text like the model's training text"
    )
