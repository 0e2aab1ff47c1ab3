"""Rows that make chosen next tokens less likely, solved by least squares.

The memory of the last layer is added to the residual stream right before the final norm and the
head. So a change ``δ`` of that row after token ``t`` moves the logits by ``r·U δ``, with
``U = W_head diag(w_norm)`` and ``r = 1 / rms(x)``, and it moves no other position's. (The change
of ``r`` itself is left out.) For each token ``t`` the ``δ`` is sought that moves the logits of the
targets by ``-1`` and no others, as nearly as it can in the metric of the Kullback–Leibler
divergence, ``diag(p) - p pᵀ``. Summed over the positions after ``t`` in a text::

    δ_t = -(Σ r² Uᵀ (diag(p) - p pᵀ) U)⁻¹ Σ r Uᵀ (diag(p) - p pᵀ) 1_targets

The average position after any of the tokens counts as some positions of each, so that tokens which
are rare in the text take over what is found for all.

The metric is that of the predictions as they are, and holds for small changes. Large ones are made
in steps, each solved with the rows that the steps before it gave: as targets become less likely,
their own logits are free to move, and others are kept in place better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from tolpack.errors import ConfigError
from tolpack.model.decoder import Decoder
from tolpack.model.head import nll
from tolpack.model.language_model import Memory
from tolpack.runtime.array_types import Floats, Ints

# Positions whose logits are held at once: 17 MB at 8,192 tokens.
_BLOCK = 512
# Part of the mean diagonal that is added to the matrix, so that it can be inverted.
_RIDGE = 1e-4
_MOST_NATS = 12.0
_Equations = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SuppressingRows:
    """What to add to the rows of tokens in field ``layer``.

    ``token_ids`` int64 (tokens,), ascending; ``added`` float32 (tokens, hidden).
    """

    layer: int
    token_ids: Ints
    added: Floats

    def times(self, factor: float) -> SuppressingRows:
        """Return `factor` times as much."""
        return replace(self, added=np.float32(factor) * self.added)

    def change(self, field: int, ids: Ints, rows: Floats) -> Floats:
        """Return the new rows: a `tolpack.edits.row_changes.RowChange`."""
        if field != self.layer:
            return rows
        added = self.added[np.searchsorted(self.token_ids, ids)]
        return np.asarray(rows + added, np.float32)

    def table(self, vocab_size: int) -> torch.Tensor:
        """Return what each token of the vocabulary gets: float32 (vocab_size, hidden)."""
        added = torch.zeros(vocab_size, self.added.shape[1])
        added[torch.from_numpy(self.token_ids)] = torch.from_numpy(self.added)
        return added


def suppress_in_steps(
    decoder: Decoder,
    windows: torch.Tensor,
    left: torch.Tensor,
    targets: Ints,
    tokens: int,
    *,
    fall: float = 10.0,
    steps: int = 4,
) -> Iterator[SuppressingRows]:
    """Yield rows that make `targets` ``fall ** (k / steps)`` times less probable, k = 1 … steps.

    Parameters
    ----------
    decoder : Decoder
        The model, with the memory whose rows will be changed.
    windows, left : torch.Tensor
        int64 (windows, length) for `suppressing_rows`, and (windows, length + 1) of a text that
        does not serve to solve, for `nats_for_fall`.
    targets : ndarray
        int64 (targets,): the next tokens to suppress.
    tokens : int
        Number of tokens to change.
    fall : float
        How many times less probable the targets shall be at the last step.
    steps : int
        Number of steps.

    Raises
    ------
    ConfigError
        As of both.
    """
    model, rows = decoder, None
    for _ in range(steps):
        chosen = tokens if rows is None else rows.token_ids
        step = suppressing_rows(model, windows, targets, chosen)
        step = step.times(nats_for_fall(model, left, targets, step, fall ** (1 / steps)))
        rows = step if rows is None else replace(step, added=rows.added + step.added)
        yield rows
        if decoder.memory is not None:
            added = rows.table(decoder.vocab_size)
            model = decoder.with_memory(_MemoryPlus(decoder.memory, rows.layer, added))


@dataclass(frozen=True, slots=True)
class _MemoryPlus:
    """A memory that adds ``added`` (vocab, hidden) to the rows of ``layer``."""

    memory: Memory
    layer: int
    added: torch.Tensor

    def __call__(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        rows = self.memory(layer, token_ids)
        return rows + self.added[token_ids] if layer == self.layer else rows


@torch.inference_mode()
def suppressing_rows(
    decoder: Decoder,
    windows: torch.Tensor,
    targets: Ints,
    tokens: int | Ints,
    *,
    shared_positions: float = 100.0,
    done: Callable[[int], object] = lambda tokens: None,
) -> SuppressingRows:
    """Solve for what lowers the log-odds of `targets` by a nat, as rows of the last layer.

    Parameters
    ----------
    decoder : Decoder
        The model, with the memory whose rows will be changed.
    windows : torch.Tensor
        int64 (windows, length): a text that the model predicts well, such as its training text.
    targets : ndarray
        int64 (targets,): the next tokens to suppress.
    tokens : int or ndarray
        Number of tokens to change: those after which the text gives the targets most probability.
        Or the tokens, int64 (tokens,).
    shared_positions : float
        Number of positions that the average over all tokens counts as, for each token.
    done : callable, optional
        Called with the number of tokens solved since the last call.

    Returns
    -------
    SuppressingRows
        Of a number of tokens, at most those that the windows hold.

    Raises
    ------
    ConfigError
        The model has no memory, or its final norm is not an RMSNorm.
    """
    if decoder.memory is None or decoder.norm.kind != "rmsnorm":
        raise ConfigError("rows are solved for a model with a memory and a final RMSNorm")
    head = torch.cat([block for _, block in decoder.head.blocks()]) * decoder.norm.weight
    states = torch.cat([decoder.states(one) for one in torch.split(windows, 8)]).flatten(0, 1)
    scale = (states.square().mean(1) + decoder.norm.eps).rsqrt()
    equations = _TokenEquations(head, states * scale[:, None], scale, torch.from_numpy(targets))
    ids = windows.flatten()
    if isinstance(tokens, int):
        chosen = _most_targeted(equations, ids, tokens, decoder.vocab_size)
    else:
        chosen = torch.from_numpy(np.unique(tokens))
    order, starts = _by_token(ids, chosen, decoder.vocab_size)
    shared = _average(equations, order)
    solved = []
    for token in range(len(chosen)):
        positions = order[starts[token] : starts[token + 1]]
        solved.append(_solve(equations(positions), shared, shared_positions))
        done(1)
    return SuppressingRows(len(decoder.widths) - 1, chosen.numpy(), torch.stack(solved).numpy())


@torch.inference_mode()
def nats_for_fall(
    decoder: Decoder, windows: torch.Tensor, targets: Ints, rows: SuppressingRows, fall: float
) -> float:
    """Return how many nats lower the targets' mean probability `fall` times, by bisection.

    Parameters
    ----------
    decoder : Decoder
        The model that `rows` were solved for.
    windows : torch.Tensor
        int64 (windows, length + 1): a text that did not serve to solve.
    targets : ndarray
        int64 (targets,): the probability is that of the next token, wherever it is a target.
    rows : SuppressingRows
        The rows of one nat.
    fall : float
        2 halves the probability.

    Returns
    -------
    float
        At most 12, also if that is not enough: tokens that are not edited keep their predictions.

    Raises
    ------
    ConfigError
        No target comes in the windows.
    """
    following = windows[:, 1:]
    hit = torch.isin(following, torch.from_numpy(targets))
    if not hit.any():
        raise ConfigError("no target comes in the text by which nats are chosen: give a longer one")
    fed = zip(torch.split(windows, 8), torch.split(hit, 8))
    states = torch.cat([decoder.states(one[:, :-1])[where] for one, where in fed])
    step, wanted = rows.table(decoder.vocab_size)[windows[:, :-1][hit]], following[hit]

    def probability(nats: float) -> float:
        losses = nll(decoder.head, decoder.norm(states + nats * step), wanted)
        return float(torch.exp(-losses).mean())

    low, high, goal = 0.0, _MOST_NATS, probability(0.0) / fall
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if probability(middle) <= goal else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class _TokenEquations:
    """Sums of the normal equations over positions.

    ``head`` (vocab, hidden) times the norm's weight; ``states`` (positions, hidden) divided by
    their rms, ``scale`` (positions,) one over it; ``targets`` int64.
    """

    head: torch.Tensor
    states: torch.Tensor
    scale: torch.Tensor
    targets: torch.Tensor

    def target_mass(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the probability of all targets at `positions`: (positions,)."""
        return self._probabilities(positions)[:, self.targets].sum(1)

    def __call__(self, positions: torch.Tensor) -> _Equations:
        """Return matrix (hidden, hidden) and right side (hidden,) summed over `positions`."""
        hidden = self.head.shape[1]
        weight = torch.zeros(len(self.head))
        matrix, right = torch.zeros(hidden, hidden), torch.zeros(hidden)
        for block in torch.split(positions, _BLOCK):
            p, scale = self._probabilities(block), self.scale[block, None]
            mean = (p @ self.head) * scale
            at_targets = p[:, self.targets]
            weight += (p * scale.square()).sum(0)
            matrix -= mean.T @ mean
            right += (at_targets * scale).sum(0) @ self.head[self.targets]
            right -= at_targets.sum(1) @ mean
        matrix += (self.head * weight[:, None]).T @ self.head
        return matrix, right

    def _probabilities(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.states[positions] @ self.head.T, -1)


def _most_targeted(
    equations: _TokenEquations, ids: torch.Tensor, count: int, vocab_size: int
) -> torch.Tensor:
    """Return the tokens after which the targets are most probable in sum, ascending: (tokens,)."""
    mass = torch.zeros(vocab_size)
    for block in torch.split(torch.arange(len(ids)), _BLOCK):
        mass.index_add_(0, ids[block], equations.target_mass(block))
    found = mass.topk(min(count, int((mass > 0).sum()))).indices
    return found.sort().values


def _by_token(
    ids: torch.Tensor, tokens: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, list[int]]:
    """Return the positions of `tokens`, token after token, and where each token's begin."""
    place = torch.full((vocab_size,), len(tokens))
    place[tokens] = torch.arange(len(tokens))
    counts = torch.bincount(place[ids], minlength=len(tokens))[: len(tokens)]
    order = place[ids].argsort(stable=True)[: int(counts.sum())]
    return order, [0, *counts.cumsum(0).tolist()]


def _average(equations: _TokenEquations, positions: torch.Tensor) -> _Equations:
    """Return the equations of a position on average, from at most some thousand positions."""
    sample = positions[:: max(1, len(positions) // 8192)]
    matrix, right = equations(sample)
    return matrix / len(sample), right / len(sample)


def _solve(own: _Equations, shared: _Equations, count: float) -> torch.Tensor:
    """Return the change of one token's row for each nat: float32 (hidden,)."""
    matrix, right = (a.double() + count * b.double() for a, b in zip(own, shared))
    ridge = _RIDGE * matrix.diagonal().mean()
    matrix.diagonal().add_(ridge)
    solution: torch.Tensor = torch.linalg.solve(matrix, right)
    return -solution.float()
