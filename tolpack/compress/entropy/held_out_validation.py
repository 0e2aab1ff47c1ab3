"""Trying a pack before it is written: its loss on the held-out part of the calibration text.

The model runs with rows as a reader would see them. An increase of perplexity is paired with the
model's own losses, which are measured once. A KL divergence needs the model's own predictions,
which are too large to be kept: the model runs a second time at every trial. It has far less noise,
so a quarter of the tokens does, and a trial is no longer than one of perplexity.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration.loss_metrics import loss_windows, window_losses
from tolpack.calibration.model_losses import CalibratedModel
from tolpack.compress.entropy.loss_measure import DIVERGENCE, Loss, LossMeasure, mean_error
from tolpack.compress.measured_loss import MeasuredLoss
from tolpack.model.divergence import Divergence, window_divergence
from tolpack.model.language_model import Memory
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.progress import Reporter

# Tokens that a divergence is measured on.
_DIVERGENCE_TOKENS = 1 << 14
# Logits of a step: 128 MB, twice, unless one window has more.
_LOGITS_PER_BATCH = 1 << 25


class HeldOutValidation:
    """The model, run with rows as a reader would see them.

    Parameters
    ----------
    model : CalibratedModel
        The model, and the text held out.
    measure : LossMeasure
        What losses are measured in.
    reporter : Reporter
        Receives progress.

    Attributes
    ----------
    measure : LossMeasure
        The same.
    token_ids, weights : ndarray
        int64 and float64 (n,): the distinct ids of rows that the text reads, and their shares.
    """

    def __init__(self, model: CalibratedModel, measure: LossMeasure, reporter: Reporter) -> None:
        self._model, self.measure, self._reporter = model, measure, reporter
        windows = loss_windows(model.model, model.validation_ids, model.context)
        if measure is DIVERGENCE:
            most = max(1, _DIVERGENCE_TOKENS // (windows.shape[1] - 1))
            count = min(most, len(windows))
            windows = windows[np.arange(count) * len(windows) // count]
        self._windows = windows
        row_ids = model.model.row_ids(windows[:, :-1]).numpy()
        found, counts = np.unique(row_ids, return_counts=True)
        self.token_ids: NDArray[np.int64] = found
        self.weights: Doubles = counts / counts.sum()

    def loss(self, rows: Floats) -> Loss:
        """Return the loss in the measure's unit.

        Parameters
        ----------
        rows : ndarray
            float32 (len(token_ids), layers, hidden), of ``token_ids``.
        """
        known, values = torch.from_numpy(self.token_ids), torch.from_numpy(rows)

        def memory(layer: int, token_ids: torch.Tensor) -> torch.Tensor:
            return values[torch.searchsorted(known, token_ids.contiguous()), layer]

        return self.loss_with(memory)

    def loss_with(self, memory: Memory) -> Loss:
        """Return the loss of the model with another memory, as `loss`."""
        if self.measure is DIVERGENCE:
            found = self._divergence(memory)
            windows = found.kl_nats.reshape(len(found.tokens), -1).mean(1)
            return Loss(found.kl_mean_nats, found.kl_mean_se_nats, windows)
        increase = self._losses(memory) - self._baseline
        ratio, error = math.exp(increase.mean()), mean_error(increase)
        percent = None if error is None else 100 * ratio * error
        return Loss(100 * (ratio - 1), percent, 100 * ratio * increase)

    def measured(self, loss: Loss, step: float | None) -> MeasuredLoss:
        """Return a loss as plans carry it."""
        tokens, value, error = self._windows[:, 1:].numel(), loss.value, loss.error
        if self.measure is DIVERGENCE:
            return MeasuredLoss(tokens, step, kl_mean_nats=value, kl_mean_se_nats=error)
        return MeasuredLoss(tokens, step, ppl_increase_pct=value, ppl_increase_se_pct=error)

    @torch.inference_mode()
    def _divergence(self, memory: Memory) -> Divergence:
        model = self._model.model
        changed, length = model.with_memory(memory), self._windows.shape[1] - 1
        step = max(1, _LOGITS_PER_BATCH // (length * model.vocab_size))
        found = []
        with self._reporter.phase("trying", self._windows[:, 1:].numel(), "tok") as done:
            for batch in torch.split(self._windows[:, :-1], step):
                ours, theirs = (one(batch).flatten(0, 1) for one in (model, changed))
                found.append(window_divergence(ours, theirs, length))
                done(batch.numel())
        return Divergence.joined(found)

    @cached_property
    def _baseline(self) -> Doubles:
        return self._losses(None)

    def _losses(self, memory: Memory | None) -> Doubles:
        found = self._model
        model = found.model if memory is None else found.model.with_memory(memory)
        with self._reporter.phase("trying", self._windows[:, 1:].numel(), "tok") as done:
            return window_losses(model, found.validation_ids, found.context, done)
