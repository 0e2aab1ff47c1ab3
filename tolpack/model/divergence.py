"""How far a model's predictions are from those of the model that it stands for.

At every scored position, over the whole vocabulary: the Kullback–Leibler divergence
``KL(P ‖ Q) = Σ_v p_v log(p_v / q_v)`` in nats, ``P`` the reference's prediction, and whether both
hold the same next token most likely. Unlike an increase of perplexity, neither depends on the token
that the text goes on with. Windows and standard errors are those of `tolpack.model.perplexity`.

With ``d_v = log q_v - log p_v`` the divergence is ``Σ_v p_v (exp d_v - 1 - d_v)``, as both sum to
one. No term of it is negative, so nothing cancels where the two are close, and equal logits give
exactly 0. The log-probabilities are float32, the sums float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tolpack.model.language_model import LanguageModel
from tolpack.model.perplexity import (
    Score,
    ratio_se,
    row_blocks,
    times,
    window_batches,
    window_score,
)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Divergences from the reference, position by position, and agreements window by window.

    ``kl_nats`` float64 (positions,), in the order of the text; ``agreed`` int64 (windows,), the
    positions of each window where both hold the same token most likely; ``tokens`` int64
    (windows,), its positions.
    """

    kl_nats: NDArray[np.float64]
    agreed: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @property
    def kl_mean_nats(self) -> float:
        """Mean divergence."""
        return float(self.kl_nats.sum() / len(self.kl_nats))

    @property
    def kl_mean_se_nats(self) -> float | None:
        """Standard error of the mean over windows; ``None`` with one window."""
        starts = np.concatenate(([0], np.cumsum(self.tokens)[:-1]))
        return ratio_se(np.add.reduceat(self.kl_nats, starts), self.tokens)

    @property
    def kl_median_nats(self) -> float:
        """Median divergence."""
        return float(np.median(self.kl_nats))

    @property
    def kl_p99_nats(self) -> float:
        """Divergence that 99 % of the positions do not pass."""
        return float(np.quantile(self.kl_nats, 0.99))

    @property
    def kl_max_nats(self) -> float:
        """Largest divergence."""
        return float(self.kl_nats.max())

    @property
    def top1_agreement_pct(self) -> float:
        """Percent of the positions where both hold the same token most likely."""
        return 100 * float(self.agreed.sum() / self.tokens.sum())

    @property
    def top1_agreement_se_pct(self) -> float | None:
        """Standard error of that percentage over windows; ``None`` with one window."""
        return times(100, ratio_se(self.agreed.astype(np.float64), self.tokens))

    @classmethod
    def joined(cls, divergences: Sequence[Divergence]) -> Divergence:
        """Return the divergence over the windows of all `divergences`, in their order."""
        parts = zip(*((one.kl_nats, one.agreed, one.tokens) for one in divergences))
        return cls(*map(np.concatenate, parts))


@torch.inference_mode()
def compare(
    reference: LanguageModel,
    models: Sequence[LanguageModel],
    token_ids: NDArray[np.int64],
    context: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[Score, list[tuple[Score, Divergence]]]:
    """Score a reference, and models that stand for it, on the same windows.

    The models run side by side, batch by batch, so that the reference runs once and no more logits
    are held than those of a batch, of it and of one model.

    Parameters
    ----------
    reference : LanguageModel
        The model that is held to be right.
    models : sequence of LanguageModel
        Models of the same vocabulary.
    token_ids : ndarray
        int64 (tokens,), at least two.
    context : int
        Window length in tokens.
    progress : callable, optional
        Called with the number of positions of one model that were scored since the last call.

    Returns
    -------
    tuple
        The reference's score; each model's score and its divergence from the reference.

    Raises
    ------
    ConfigError
        `context` is less than 1.
    """
    base: list[Score] = []
    found: list[list[tuple[Score, Divergence]]] = [[] for _ in models]
    for batch, targets in window_batches(token_ids, context, reference.vocab_size):
        expected = reference(batch).flatten(0, 1)
        base.append(window_score(expected, targets))
        for model, parts in zip(models, found):
            logits = model(batch).flatten(0, 1)
            divergence = window_divergence(expected, logits, targets.shape[1])
            parts.append((window_score(logits, targets), divergence))
            if progress is not None:
                progress(targets.numel())
    scores = [tuple(zip(*parts)) for parts in found]
    joined = [(Score.joined(own), Divergence.joined(divergences)) for own, divergences in scores]
    return Score.joined(base), joined


def window_divergence(reference: torch.Tensor, other: torch.Tensor, length: int) -> Divergence:
    """Return the divergence of `other` from `reference`, logits (windows · length, vocab).

    Positions are worked on in blocks, so that little is held beside the logits.
    """
    kl, agreed = [], []
    for block in row_blocks(reference):
        ours, theirs = reference[block], other[block]
        kl.append(kl_divergence(ours, theirs))
        agreed.append(ours.max(-1).indices == theirs.max(-1).indices)
    windows = torch.cat(agreed).view(-1, length)
    return Divergence(torch.cat(kl).numpy(), windows.sum(1).numpy(), np.full(len(windows), length))


def kl_divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return ``KL(softmax(reference) ‖ softmax(other))`` in nats for logits (n, vocab).

    float64 (n,).
    """
    ours, theirs = F.log_softmax(reference, -1), F.log_softmax(other, -1)
    ratio = theirs.sub_(ours)
    found = torch.expm1(ratio).sub_(ratio).mul_(ours.exp_()).sum(-1, dtype=torch.float64)
    extreme = ~found.isfinite()
    if extreme.any():  # a ratio past float32's largest number, or probabilities of zero
        found[extreme] = _kl_of_extremes(reference[extreme], other[extreme])
    return found


def _kl_of_extremes(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the divergence by its definition, where it is large."""
    ours, theirs = F.log_softmax(reference.double(), -1), F.log_softmax(other.double(), -1)
    terms = ours.exp() * (ours - theirs)
    return torch.where(ours == -torch.inf, 0.0, terms).sum(-1)
