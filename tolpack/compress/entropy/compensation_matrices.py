"""Error compensation between layers: which error of one layer the layers above it can cancel.

The memory outputs of all layers are added to one residual stream, so gradients at neighbouring
layers are nearly the same vector, and an error ``e_l`` costs ``½ Σ_{l,m} e_l G_{l,m} e_mᵀ`` with
large terms off the diagonal. Layers are rounded from the first to the last. When layer ``l`` is
rounded with error ``e_l``, the best that the layers ``W`` above it can do is to take up the error
``-e_l A`` with ``A = G_{l,W} G_{W,W}⁻¹``: that much is added to what they are to store. What then
remains costs ``½ e_l S_l e_lᵀ``, with the Schur complement ``S_l = G_{l,l} - A G_{W,l}``: a tenth
to a quarter of ``G_{l,l}`` (docs/compression.md). This is the block form of the
elimination that GPTQ (arXiv 2210.17323) does column by column inside a weight matrix.

Where fields cannot make up for one another's errors (`TableSource.fields_compensate`), nothing was
measured of two layers together, and each is left alone with its own metric.

``W`` is the next `COMPENSATION_REACH` kept layers: gradients form nearly a Markov chain along the
layers, so two see nearly as much as all.

Metrics come from a short text, and errors of the size of a step are not infinitesimal. So a share
of each metric's mean eigenvalue is added to its diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from tolpack.calibration.model_losses import CalibratedModel
from tolpack.compress.entropy.error_compensation import ErrorCompensation
from tolpack.compress.settings import COMPENSATION_REACH
from tolpack.runtime.array_types import Doubles
from tolpack.runtime.scratch import Scratch


def error_compensations(
    model: CalibratedModel | None,
    kept: Sequence[int],
    hidden_size: int,
    damping: float,
    scratch: Scratch,
) -> dict[int, ErrorCompensation]:
    """Work out `ErrorCompensation` for every kept layer.

    Parameters
    ----------
    model : CalibratedModel or None
        The metrics, measured with a reach of `COMPENSATION_REACH`; without them every direction of
        every layer costs the same, and nothing is compensated for.
    kept : sequence of int
        Layers that are stored, ascending.
    hidden_size : int
        Of the table.
    damping : float
        Share of a metric's mean eigenvalue that is added to its diagonal.
    scratch : Scratch
        Keeps the results.
    """
    if model is None:
        same = ErrorCompensation(scratch.spill(np.eye(hidden_size)), (), None)
        return dict.fromkeys(kept, same)
    return {layer: _compensate_layer(model, layer, kept, damping, scratch) for layer in kept}


def neighbours(layer: int, kept: Sequence[int]) -> list[int]:
    """Return the nearest kept layers within reach on both sides of `layer`.

    One on each side: metrics of layers farther apart than `COMPENSATION_REACH` are not measured,
    and what completes them (`_block`) is consistent for two layers only.
    """
    below = [n for n in kept if layer - COMPENSATION_REACH <= n < layer]
    above = [n for n in kept if layer < n <= layer + COMPENSATION_REACH]
    return below[-1:] + above[:1]


def compensation_matrix(
    model: CalibratedModel, layer: int, others: Sequence[int], damping: float
) -> Doubles:
    """Return ``A``, float64 (hidden, len(others) · hidden): how `others` compensate for `layer`;
    zeros where nothing was measured of two layers together.
    """
    if not any(model.crossed):
        hidden = model.metrics[layer].shape[0]
        return np.zeros((hidden, len(others) * hidden))
    to_others = np.hstack([_block(model, layer, n, damping) for n in others])
    among = np.block([[_block(model, n, m, damping) for m in others] for n in others])
    return np.asarray(scipy.linalg.solve(among, to_others.T, assume_a="pos").T)


def remaining_metric(
    model: CalibratedModel, layer: int, others: Sequence[int], damping: float, matrix: Doubles
) -> Doubles:
    """Return the metric of an error of `layer` that `others` compensate for by `matrix`."""
    metric = _damped(model, layer, damping)
    if any(model.crossed):
        to_others = np.hstack([_block(model, layer, n, damping) for n in others])
        metric -= matrix @ to_others.T
    return np.asarray((metric + metric.T) / 2)


def _compensate_layer(
    model: CalibratedModel, layer: int, kept: Sequence[int], damping: float, scratch: Scratch
) -> ErrorCompensation:
    above = tuple(n for n in kept if layer < n <= layer + COMPENSATION_REACH)
    if not above or not any(model.crossed):
        return ErrorCompensation(scratch.spill(_damped(model, layer, damping)), (), None)
    matrix = compensation_matrix(model, layer, above, damping)
    metric = remaining_metric(model, layer, above, damping, matrix)
    return ErrorCompensation(scratch.spill(metric), above, scratch.spill(matrix.astype(np.float32)))


def _block(model: CalibratedModel, row: int, column: int, damping: float) -> Doubles:
    """``G_{row,column}``, damped on the diagonal.

    Blocks farther apart than was measured follow from the chain: ``G_{l,k} G_{k,k}⁻¹ G_{k,m}``.
    """
    if row == column:
        return _damped(model, row, damping)
    if row > column:
        return _block(model, column, row, damping).T
    if column - row > len(model.crossed[row]):
        between = row + len(model.crossed[row])
        onward = scipy.linalg.solve(
            _damped(model, between, damping),
            _block(model, between, column, damping),
            assume_a="pos",
        )
        return np.asarray(_block(model, row, between, damping) @ onward)
    return np.asarray(model.crossed[row][column - row - 1].load())


def _damped(model: CalibratedModel, layer: int, damping: float) -> Doubles:
    metric: Doubles = model.metrics[layer].load().copy()
    metric[np.diag_indices_from(metric)] += damping * np.trace(metric) / len(metric)
    return metric
