"""Perplexity over non-overlapping windows, with standard errors.

Window ``i`` reads ``ids[i·N : i·N+N]`` and is scored on ``ids[i·N+1 : i·N+N+1]``. Windows are
independent; the last one may be shorter if it scores at least one token. Perplexity is
``exp(Σ nll / Σ tokens)``. Standard errors treat windows as the sampling unit and use the delta
method for the ratio estimator; an increase is paired window by window, which removes the
variation of the text itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tolpack.errors import ConfigError
from tolpack.model.language_model import LanguageModel

# 4,096 tokens a step: large enough for full matrix speed, small enough for the logits' memory.
_TOKENS_PER_BATCH = 4096


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
    def ppl_se(self) -> float:
        """Standard error of the perplexity over windows (0 with one window)."""
        return self.ppl * _ratio_se(self.nll_nats, self.tokens)


def increase_pct(score: Score, baseline: Score) -> tuple[float, float]:
    """Return the perplexity increase over `baseline` in percent, and its paired standard error.

    Both scores must be of the same windows.
    """
    if not np.array_equal(score.tokens, baseline.tokens):
        raise ConfigError("the two scores are of different windows and cannot be paired")
    difference = score.nll_nats - baseline.nll_nats
    ratio = _exp(float(difference.sum()) / score.total_tokens)
    return 100 * (ratio - 1), 100 * ratio * _ratio_se(difference, score.tokens)


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
    if context < 1:
        raise ConfigError(f"context is {context}, expected at least 1")
    scored = len(token_ids) - 1
    full = scored // context
    ids = torch.from_numpy(np.ascontiguousarray(token_ids))
    inputs = ids[: full * context].view(full, context)
    targets = ids[1 : full * context + 1].view(full, context)
    step = max(1, _TOKENS_PER_BATCH // context)
    batches = [(inputs[i : i + step], targets[i : i + step]) for i in range(0, full, step)]
    if scored % context:
        batches.append((ids[full * context : -1][None], ids[full * context + 1 :][None]))
    nll, tokens = [], []
    for batch, target in batches:
        loss = F.cross_entropy(model(batch).flatten(0, 1), target.flatten(), reduction="none")
        nll.append(loss.view(target.shape).double().sum(1))
        tokens.append(torch.full((len(target),), target.shape[1]))
        if progress is not None:
            progress(target.numel())
    return Score(torch.cat(nll).numpy(), torch.cat(tokens).numpy())


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _ratio_se(values: NDArray[np.float64], tokens: NDArray[np.int64]) -> float:
    """Standard error of ``Σ values / Σ tokens`` over windows (delta method)."""
    windows = len(values)
    if windows < 2:
        return 0.0
    residual = values - values.sum() / tokens.sum() * tokens
    spread = float(np.square(residual).sum()) * windows / (windows - 1)
    return math.sqrt(spread) / int(tokens.sum())
