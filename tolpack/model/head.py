"""Embedding and output head: matrices of vocabulary × hidden, whole or a block of rows at a time.

At a large vocabulary neither the head in float32 nor the logits of many positions fit in memory.
`nll` and `nll_gradient` go over the vocabulary in blocks: the log of the summed exponentials is
joined block by block, and the gradient of position ``t`` is
``Σ_v softmax(z_t)_v W_v - W_target`` in a second pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from tolpack.sources.checkpoint.checkpoint import Checkpoint

_BLOCK_ROWS = 8192


class VocabularyMatrix:
    """A float32 matrix (vocab, hidden) of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The checkpoint that has it.
    name : str
        Schema name.
    resident : bool
        Whether to keep it in memory, in float32; else rows are read when they are needed.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, *, resident: bool) -> None:
        self._checkpoint, self._name = checkpoint, name
        self._resident = checkpoint.tensor(name).float() if resident else None
        if not resident:
            checkpoint.check_finite_rows(name)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of int64 `ids` of any shape: float32 (…, hidden)."""
        if self._resident is not None:
            return F.embedding(ids, self._resident)
        rows = self._checkpoint.rows(self._name, ids.reshape(-1)).float()
        return rows.view(*ids.shape, -1)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, float32 rows): all at once if resident, else in blocks."""
        if self._resident is not None:
            yield 0, self._resident
            return
        vocab = self._checkpoint.config.vocab_size
        for start in range(0, vocab, _BLOCK_ROWS):
            stop = min(vocab, start + _BLOCK_ROWS)
            yield start, self._checkpoint.row_block(self._name, start, stop).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 (…, vocab) for `hidden` (…, hidden)."""
        return torch.cat([F.linear(hidden, block) for _, block in self.blocks()], dim=-1)


@torch.no_grad()
def nll(head: VocabularyMatrix, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of `targets` (n,) after states `hidden` (n, hidden).

    float32 (n,), in nats.
    """
    normalizer = torch.full(targets.shape, -torch.inf)
    target_logits = torch.zeros(targets.shape)
    for start, block in head.blocks():
        logits = F.linear(hidden, block)
        normalizer = torch.logaddexp(normalizer, torch.logsumexp(logits, -1))
        inside = (targets >= start) & (targets < start + len(block))
        target_logits[inside] = logits[inside, targets[inside] - start]
    return normalizer - target_logits


@torch.no_grad()
def nll_gradient(
    head: VocabularyMatrix, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the summed `nll` at `hidden`: float32 (n, hidden)."""
    normalizer = nll(head, hidden, targets) + (hidden * head.rows(targets)).sum(-1)
    gradient = -head.rows(targets)
    for _, block in head.blocks():
        probability = (F.linear(hidden, block) - normalizer[:, None]).exp_()
        gradient += probability @ block
    return gradient
