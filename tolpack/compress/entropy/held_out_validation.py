"""Trying a pack before it is written: perplexity on the held-out part of the calibration text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration.loss_metrics import loss_windows, window_losses
from tolpack.calibration.model_losses import CalibratedModel
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.progress import Reporter


class HeldOutValidation:
    """The model, run with rows as a reader would see them.

    Parameters
    ----------
    model : CalibratedModel
        The model, and the text held out.
    reporter : Reporter
        Receives progress.

    Attributes
    ----------
    token_ids, weights : ndarray
        int64 and float64 (n,): the distinct tokens of the text, and their shares of it.
    """

    def __init__(self, model: CalibratedModel, reporter: Reporter) -> None:
        self._model = model
        self._reporter = reporter
        windows = loss_windows(model.model, model.validation_ids, model.context)
        self._tokens = windows[:, 1:].numel()
        row_ids = model.model.row_ids(windows[:, :-1]).numpy()
        found, counts = np.unique(row_ids, return_counts=True)
        self.token_ids: NDArray[np.int64] = found
        self.weights: Doubles = counts / counts.sum()

    def increase_pct(self, rows: Floats) -> tuple[float, float]:
        """Return the perplexity increase in percent, and its paired standard error over windows.

        Parameters
        ----------
        rows : ndarray
            float32 (len(token_ids), layers, hidden), of ``token_ids``.
        """
        known, values = torch.from_numpy(self.token_ids), torch.from_numpy(rows)

        def memory(layer: int, token_ids: torch.Tensor) -> torch.Tensor:
            return values[torch.searchsorted(known, token_ids.contiguous()), layer]

        found = self._losses(memory) - self._baseline
        ratio = math.exp(found.mean())
        return 100 * (ratio - 1), 100 * ratio * float(found.std()) / math.sqrt(len(found))

    @cached_property
    def _baseline(self) -> Doubles:
        return self._losses(None)

    def _losses(self, memory: Callable[[int, torch.Tensor], torch.Tensor] | None) -> Doubles:
        found = self._model
        model = found.model if memory is None else found.model.with_memory(memory)
        with self._reporter.phase("trying", self._tokens, "tok") as done:
            return window_losses(model, found.validation_ids, found.context, done)
