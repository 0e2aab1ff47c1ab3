"""Perplexity over non-overlapping windows, with standard errors.

Window ``i`` reads ``ids[i·N : i·N+N]`` and is scored on ``ids[i·N+1 : i·N+N+1]``. Windows are
independent; the last one may be shorter if it scores at least one token. Perplexity is
``exp(Σ nll / Σ tokens)``. Standard errors treat windows as the sampling unit and use the delta
method for the ratio estimator; an increase is paired window by window, which removes the
variation of the text itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tolpack.errors import ConfigError
from tolpack.model.language_model import LanguageModel

# 4,096 tokens a step: large enough for full matrix speed. A large vocabulary takes fewer, so that
# the logits of a step are 512 MB at most, unless one window has more.
_TOKENS_PER_BATCH, LOGITS_PER_BATCH = 4096, 1 << 27
# Logits that are worked on at once: 4 MB stay in a processor's cache.
_LOGITS_PER_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Score:
    """Summed negative log-likelihood of each window.

    ``nll_nats`` float64 (windows,); ``tokens`` int64 (windows,), the tokens scored in each.
    """

    nll_nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def total_tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.tokens.sum())

    @property
    def mean_nll_nats(self) -> float:
        """Negative log-likelihood per token."""
        return float(self.nll_nats.sum() / self.total_tokens)

    @property
    def ppl(self) -> float:
        """Perplexity."""
        return _exp(self.mean_nll_nats)

    @property
    def ppl_se(self) -> float | None:
        """Standard error of the perplexity over windows; ``None`` with one window."""
        return times(self.ppl, ratio_se(self.nll_nats, self.tokens))

    def first(self, windows: int) -> Score:
        """Return the score of the first windows."""
        return Score(self.nll_nats[:windows], self.tokens[:windows])

    @classmethod
    def joined(cls, scores: Sequence[Score]) -> Score:
        """Return the score over the windows of all `scores`, in their order."""
        nll, tokens = zip(*((one.nll_nats, one.tokens) for one in scores))
        return cls(np.concatenate(nll), np.concatenate(tokens))


def increase_pct(score: Score, baseline: Score) -> tuple[float, float | None]:
    """Return the perplexity increase over `baseline` in percent, and its paired standard error;
    ``None`` for that with one window.

    Both scores must be of the same windows.
    """
    if not np.array_equal(score.tokens, baseline.tokens):
        raise ConfigError("the two scores are of different windows and cannot be paired")
    difference = score.nll_nats - baseline.nll_nats
    ratio = _exp(float(difference.sum()) / score.total_tokens)
    return 100 * (ratio - 1), times(100 * ratio, ratio_se(difference, score.tokens))


@torch.inference_mode()
def score(
    model: LanguageModel,
    token_ids: NDArray[np.int64],
    context: int,
    progress: Callable[[int], object] | None = None,
) -> Score:
    """Score `token_ids` in windows of `context` tokens.

    Parameters
    ----------
    model : LanguageModel
        The model.
    token_ids : ndarray
        int64 (tokens,), at least two.
    context : int
        Window length ``N`` in tokens.
    progress : callable, optional
        Called with the number of tokens scored since the last call.

    Raises
    ------
    ConfigError
        `context` is less than 1.
    """
    scores = []
    for batch, targets in window_batches(token_ids, context, model.vocab_size):
        scores.append(window_score(model(batch).flatten(0, 1), targets))
        if progress is not None:
            progress(targets.numel())
    return Score.joined(scores)


def window_score(logits: torch.Tensor, targets: torch.Tensor) -> Score:
    """Score windows by logits (windows · length, vocab); `targets` int64 (windows, length)."""
    ids = targets.flatten()
    losses = [
        F.cross_entropy(logits[block], ids[block], reduction="none") for block in row_blocks(logits)
    ]
    sums = torch.cat(losses).view(targets.shape).double().sum(1)
    return Score(sums.numpy(), np.full(len(targets), targets.shape[1]))


def window_batches(
    token_ids: NDArray[np.int64], context: int, vocab_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the ids that windows feed, and those they are scored on: int64 (windows, length).

    Raises
    ------
    ConfigError
        `context` is less than 1.
    """
    if context < 1:
        raise ConfigError(f"context is {context}, expected at least 1")
    full, rest = divmod(len(token_ids) - 1, context)
    ids = torch.from_numpy(np.ascontiguousarray(token_ids))
    inputs = ids[: full * context].view(full, context)
    targets = ids[1 : full * context + 1].view(full, context)
    step = max(1, tokens_per_batch(vocab_size) // context)
    for start in range(0, full, step):
        yield inputs[start : start + step], targets[start : start + step]
    if rest:
        yield ids[full * context : -1][None], ids[full * context + 1 :][None]


def tokens_per_batch(vocab_size: int) -> int:
    """Return how many tokens are run together, so that their logits fit in memory."""
    return min(_TOKENS_PER_BATCH, LOGITS_PER_BATCH // vocab_size)


def row_blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Yield slices over the positions of logits (n, vocab) that are worked on at once."""
    step = max(1, _LOGITS_PER_BLOCK // logits.shape[1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def times(factor: float, error: float | None) -> float | None:
    """Return a standard error times a factor; an unknown one stays unknown."""
    return None if error is None else factor * error


def ratio_se(values: NDArray[np.float64], tokens: NDArray[np.int64]) -> float | None:
    """Return the standard error of ``Σ values / Σ tokens`` over windows (delta method); ``None``
    with one window, which tells none.
    """
    windows = len(values)
    if windows < 2:
        return None
    residual = values - values.sum() / tokens.sum() * tokens
    spread = float(np.square(residual).sum()) * windows / (windows - 1)
    return math.sqrt(spread) / int(tokens.sum())
