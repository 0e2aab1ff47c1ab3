"""Tuning what decodes a pack, bases and means, to the uncompressed model's own predictions.

Codes stay as they are. On windows of the calibration text the model is run with its exact rows and
with the rows that codes, bases and means give, and bases and means go down the gradient of
``KL(exact ‖ packed)``, averaged over positions. The quadratic form that rounding works with holds
for errors of the size of a small step; tuning gains where they are larger, or components were cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tolpack.building.layer_basis import coded_basis, read_basis
from tolpack.building.weighing import CalibratedModel
from tolpack.codecs.values import Floats
from tolpack.progress import Reporter
from tolpack.reference.calibrate import affordable_tokens, spread_windows
from tolpack.reference.decoder import Memory

# Tokens that are read at most, and the fewest steps that are worth while.
_MAX_TOKENS, _LEAST_STEPS = 1 << 18, 32
_TOKENS_PER_STEP, _LOGITS_PER_STEP = 2048, 1 << 26
# The perplexity increase in percent from which on tuning gains (docs/lab-notes.md).
TUNED_FROM_PCT = 0.75
# The largest step of Adam, as a share of what a layer's decoded values amount to; it rises over the
# first tenth and falls as a cosine.
_RATE = 0.0006
_RISING = 0.1


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """Some tokens' rows of a layer as a reader sees them: ``stored @ basis + mean``.

    ``stored`` float32 (tokens, rank), ``basis`` float32 (rank, hidden), ``mean`` float32 (hidden,).
    """

    stored: Floats
    basis: Floats
    mean: Floats


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """What a layer is decoded by: ``rows`` float32 (rank, hidden), the basis before it is coded;
    ``mean`` float32 (hidden,).
    """

    rows: Floats
    mean: Floats

    @property
    def basis(self) -> Floats:
        """The basis as it is read, float32 (rank, hidden)."""
        return read_basis(coded_basis(self.rows), len(self.mean))


def tuning_steps(model: CalibratedModel) -> int:
    """Return how many steps can be afforded, 0 if too few for a gain."""
    tokens = min(affordable_tokens(model.decoder.config, _MAX_TOKENS), len(model.token_ids))
    steps = tokens // _step_tokens(model)
    return steps if steps >= _LEAST_STEPS else 0


def _step_tokens(model: CalibratedModel) -> int:
    """Tokens of one step: whole windows, fewer where the vocabulary is large."""
    most = min(_TOKENS_PER_STEP, _LOGITS_PER_STEP // model.decoder.config.vocab_size)
    return max(1, most // model.context) * model.context


def tuning_tokens(model: CalibratedModel) -> NDArray[np.int64]:
    """Return the distinct tokens of the text that is tuned on, int64 (tokens,), ascending."""
    return np.asarray(np.unique(_windows(model)[:, :-1].numpy()))


def tune(
    model: CalibratedModel,
    exact: Floats,
    layers: Mapping[int, PackedLayer],
    reporter: Reporter,
) -> dict[int, TunedLayer]:
    """Return every layer's tuned basis and mean.

    Parameters
    ----------
    model : CalibratedModel
        The model and its text.
    exact : ndarray
        float32 (tokens, num_layers, hidden): the rows of `tuning_tokens`.
    layers : mapping of int to PackedLayer
        By layer, the same tokens packed; layers left out add nothing.
    reporter : Reporter
        Receives progress.
    """
    known, rows = torch.from_numpy(tuning_tokens(model)), torch.from_numpy(exact)
    tuned = {layer: _Tuned(packed) for layer, packed in layers.items()}

    def wanted(layer: int, ids: torch.Tensor) -> torch.Tensor:
        return rows[torch.searchsorted(known, ids.contiguous()), layer]

    def packed_rows(layer: int, ids: torch.Tensor) -> torch.Tensor:
        if layer not in tuned:
            return torch.zeros(*ids.shape, rows.shape[2])
        return tuned[layer](torch.searchsorted(known, ids.contiguous()))

    steps, windows = tuning_steps(model), _windows(model)
    parameters = [p for one in tuned.values() for p in one.parameters]
    optimizer = torch.optim.Adam(parameters, lr=1.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    with reporter.phase("tuning", windows[:, 1:].numel(), "tok") as done:
        for batch in torch.split(windows, len(windows) // steps):
            with torch.no_grad():
                target = _log_probabilities(model, wanted, batch[:, :-1])
            with torch.enable_grad():
                found = _log_probabilities(model, packed_rows, batch[:, :-1])
                loss = F.kl_div(found, target, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done(batch[:, 1:].numel())
    return {layer: one.result() for layer, one in tuned.items()}


def _windows(model: CalibratedModel) -> torch.Tensor:
    """Return the windows that are tuned on, int64 (windows, context + 1), in a fixed random order:
    neighbours in a text are alike.
    """
    tokens = tuning_steps(model) * _step_tokens(model)
    windows = spread_windows(model.token_ids, model.context, tokens)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    return windows[order]


def _log_probabilities(model: CalibratedModel, memory: Memory, ids: torch.Tensor) -> torch.Tensor:
    """Of every position's next token, float32 (positions, vocab_size)."""
    decoder = model.decoder
    states = decoder.norm(decoder.states(ids, memory=memory)).flatten(0, 1)
    return F.log_softmax(decoder.head.logits(states), -1)


class _Tuned:
    """A layer whose basis and mean change, in units in which equal changes of any number change its
    decoded values alike: rows of the basis in units of one over their coefficients' size.
    """

    def __init__(self, packed: PackedLayer) -> None:
        self._stored = torch.from_numpy(packed.stored)
        self._basis, self._mean = torch.from_numpy(packed.basis), torch.from_numpy(packed.mean)
        sizes = self._stored.square().mean(0).sqrt()
        whole = float((self._stored @ self._basis).square().mean().sqrt())
        self._units = (whole / (sizes + 1e-3 * sizes.max()))[:, None]
        self._mean_unit = whole
        self._rows = torch.zeros_like(self._basis, requires_grad=True)
        self._shift = torch.zeros_like(self._mean, requires_grad=True)
        self.parameters = [self._rows, self._shift]

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return rows `numbers`."""
        basis, mean = self._now()
        return self._stored[numbers] @ basis + mean

    def result(self) -> TunedLayer:
        """Return what was found."""
        basis, mean = self._now()
        return TunedLayer(basis.detach().numpy(), mean.detach().numpy())

    def _now(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._basis + self._rows * self._units, self._mean + self._shift * self._mean_unit


def _rate(share: float) -> float:
    """Rate at `share` of the way."""
    return _RATE * min(1.0, share / _RISING) * 0.5 * (1 + math.cos(math.pi * share))
